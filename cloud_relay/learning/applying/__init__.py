"""Models over many records at once: which chunks there are, who computes them, and the file of what came out."""
