"""Reports: tables and figures, built from records alone and the same to the byte each time."""
