"""What answers questions: readers of a store, whatever the store is made of."""
