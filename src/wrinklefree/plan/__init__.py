"""What a training needs of memory and time, before any weight is loaded."""
