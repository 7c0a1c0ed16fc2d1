# The front door: every `snakemake` in this folder comes in here. The workflow is workflow/Snakefile.


include: "workflow/Snakefile"


# An include takes its default target with it when it ends.
workflow.default_target = "all"
