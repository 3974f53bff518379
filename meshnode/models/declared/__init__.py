"""What a manifest declares, held against the model: its signature, its pictures, its golden vectors."""
