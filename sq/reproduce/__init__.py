"""Everything the records and tables of results/ stand for, run again: what is missing, in order of cost."""
