"""What a node holds of releases on its disk: chunks by digest, and files that are put together from them."""
