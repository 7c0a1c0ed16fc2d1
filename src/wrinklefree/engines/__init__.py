"""What Snakemake and DVC ask about the stages."""
