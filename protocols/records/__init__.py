"""Records: which readings are curated for the relay, and the account of what became of each."""
