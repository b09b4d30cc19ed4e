"""Files of a corpus: found, fetched, checked, cached and decoded."""
