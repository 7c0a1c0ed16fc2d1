rule fetch:
    input:
        expand("data/raw/{source}/manifest.json", source=SOURCES),
    message:
        "Documents of all sources are there"


rule fetch_source:
    output:
        "data/raw/{source}/manifest.json",
    log:
        "logs/fetch.{source}.log",
    benchmark:
        "logs/benchmarks/fetch.{source}.jsonl"
    resources:
        mem_mb=1000,
    params:
        settings=settings("fetch"),
        code=code("fetch"),
    message:
        "Fetch the documents of {wildcards.source}"
    shell:
        "python -P workflow/scripts/fetch.py --settings {params.settings:q}"
        " --source {wildcards.source} --output data/raw/{wildcards.source}"


rule tokenizer:
    input:
        expand("data/raw/{source}/manifest.json", source=SOURCES),
    output:
        "data/tokenizer/manifest.json",
    log:
        "logs/tokenizer.log",
    benchmark:
        "logs/benchmarks/tokenizer.jsonl"
    threads: workflow.cores
    resources:
        mem_mb=2000,
    params:
        settings=settings("tokenizer"),
        code=code("tokenizer"),
    message:
        "Train or bring the tokenizer"
    shell:
        "python -P workflow/scripts/tokenizer.py --settings {params.settings:q}"
        " --raw data/raw --output data/tokenizer"


rule tokenize:
    input:
        expand("data/tokens/{source}/manifest.json", source=SOURCES),
    message:
        "Tokens of all sources are there"


rule tokenize_source:
    input:
        raw="data/raw/{source}/manifest.json",
        tokenizer="data/tokenizer/manifest.json",
    output:
        "data/tokens/{source}/manifest.json",
    log:
        "logs/tokenize.{source}.log",
    benchmark:
        "logs/benchmarks/tokenize.{source}.jsonl"
    resources:
        mem_mb=1000,
    params:
        settings=settings("tokenize"),
        code=code("tokenize"),
    message:
        "Tokenize {wildcards.source}"
    shell:
        "python -P workflow/scripts/tokenize.py --settings {params.settings:q}"
        " --source {wildcards.source} --raw data/raw/{wildcards.source}"
        " --tokenizer data/tokenizer --output data/tokens/{wildcards.source}"


rule mixture:
    input:
        expand("data/tokens/{source}/manifest.json", source=SOURCES),
        tokenizer="data/tokenizer/manifest.json",
    output:
        "data/mixture/manifest.json",
    log:
        "logs/mixture.log",
    benchmark:
        "logs/benchmarks/mixture.jsonl"
    resources:
        mem_mb=2000,
    params:
        settings=settings("mixture"),
        code=code("mixture"),
    message:
        "Pack the tokens of all domains into rows"
    shell:
        "python -P workflow/scripts/mixture.py --settings {params.settings:q}"
        " --tokens data/tokens --tokenizer data/tokenizer --output data/mixture"
