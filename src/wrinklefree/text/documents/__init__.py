"""What a document is, how documents are kept, and the settings of their sources and cleaning."""
