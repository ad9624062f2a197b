"""Trials: measure other bits than the allocation chose, to judge a sensitivity metric."""
