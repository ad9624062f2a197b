"""Plain data and protocols that flow between packages."""
