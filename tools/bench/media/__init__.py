"""Pictures in the bench: encoded, trained on, read from a corpus, and dealt to ranks."""
