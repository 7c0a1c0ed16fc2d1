"""What a run's data is: counts, lengths, duplicates, shares, drops and samples of its text."""
