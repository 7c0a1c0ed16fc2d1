"""What comes from outside: archives of packages, files, base models."""
