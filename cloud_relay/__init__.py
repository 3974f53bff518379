"""The cloud relay: takes curated records from nodes, keeps each once, and gives them back."""
