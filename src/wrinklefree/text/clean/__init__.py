"""``clean``: removes repeated, unfit and contaminated text from the documents of a source."""
