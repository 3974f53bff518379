"""What people ask of the store: records, and whether the account adds up."""
