"""Datasets: ``load() -> Dataset``, a training and a disjoint evaluation split."""
