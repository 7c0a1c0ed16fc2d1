rule base:
    input:
        mixture="data/mixture/manifest.json",
        tokenizer="data/tokenizer/manifest.json",
    output:
        "models/base/manifest.json",
        "provenance/models/base.json",
    log:
        "logs/base.log",
    benchmark:
        "logs/benchmarks/base.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS if "scratch" in PARAMETERS["base"] else 0,
    params:
        settings=settings("base"),
        code=code("base"),
    message:
        "Train or bring the dense model"
    shell:
        "python -P workflow/scripts/base.py --settings {params.settings:q}"
        " --mixture data/mixture --tokenizer data/tokenizer --output models/base"


rule teachers:
    output:
        "models/teachers/manifest.json",
        "provenance/models/teachers.json",
    log:
        "logs/teachers.log",
    benchmark:
        "logs/benchmarks/teachers.jsonl"
    resources:
        mem_mb=model_memory,
    params:
        settings=settings("teachers"),
        code=code("teachers"),
    message:
        "Bring the dense models that teach beside the base"
    shell:
        "python -P workflow/scripts/teachers.py --settings {params.settings:q}"
        " --output models/teachers"


rule subln:
    input:
        model="models/base/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        "models/subln/manifest.json",
        "provenance/models/subln.json",
    log:
        "logs/subln.log",
    benchmark:
        "logs/benchmarks/subln.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=0 if checked.subln.reconstruct.kind == "none" else GPUS,
    params:
        settings=settings("subln"),
        code=code("subln"),
    message:
        "Insert SubLN and ternary linear layers, and measure the damage"
    shell:
        "python -P workflow/scripts/subln.py --settings {params.settings:q}"
        " --model models/base --mixture data/mixture --output models/subln"
