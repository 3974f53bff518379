"""The demonstration of curation: hard braking becomes a hotspot record without plates, an alert, and an action."""
