"""Records of runs on disk, claims to runs, and the experiments they belong to."""
