"""Models: ``load() -> Model``, one adapter for each source of networks."""
