rule stage2:
    input:
        model="models/subln/manifest.json",
        teacher="models/base/manifest.json",
        teachers="models/teachers/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        "models/stage2/manifest.json",
        "provenance/models/stage2.json",
    log:
        "logs/stage2.log",
    benchmark:
        "logs/benchmarks/stage2.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("stage2"),
        code=code("stage2"),
    message:
        "Continued pretraining with quantization in the loop"
    shell:
        "python -P workflow/scripts/stage2.py --settings {params.settings:q}"
        " --model models/subln --teacher models/base --teachers models/teachers"
        " --mixture data/mixture --output models/stage2"


rule dlm:
    input:
        model="models/stage2/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        "models/dlm/manifest.json",
        "provenance/models/dlm.json",
    log:
        "logs/dlm.log",
    benchmark:
        "logs/benchmarks/dlm.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("dlm"),
        code=code("dlm"),
    message:
        "Convert to a block-diffusion model"
    shell:
        "python -P workflow/scripts/dlm.py --settings {params.settings:q}"
        " --model models/stage2 --mixture data/mixture --output models/dlm"


rule distill:
    input:
        instances("distill", "models/distill/{student}/manifest.json", student=STUDENTS),
    message:
        "Both students are there"


rule distill_student:
    input:
        model=lambda wildcards: f"models/{STUDENTS[wildcards.student]}/manifest.json",
        teacher="models/base/manifest.json",
        teachers="models/teachers/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        "models/distill/{student}/manifest.json",
        "provenance/models/distill/{student}.json",
    log:
        "logs/distill.{student}.log",
    benchmark:
        "logs/benchmarks/distill.{student}.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("distill"),
        code=code("distill"),
        model=lambda wildcards: f"models/{STUDENTS[wildcards.student]}",
    message:
        "Distill the dense model into the {wildcards.student} student"
    shell:
        "python -P workflow/scripts/distill.py --settings {params.settings:q}"
        " --student {wildcards.student} --model {params.model} --teacher models/base"
        " --teachers models/teachers --mixture data/mixture --output models/distill/{wildcards.student}"
