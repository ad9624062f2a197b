PYTHON ?= python

paper: # every experiment that is not done, the cheapest first, then all of results/
	$(PYTHON) -m sq.reproduce

.PHONY: paper
