"""Records of runs on disk, locks of runs, and the experiments that runs belong to."""
