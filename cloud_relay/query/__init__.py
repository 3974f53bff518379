"""What people ask the store for: records, and whether the account adds up."""
