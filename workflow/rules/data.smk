rule fetch:
    message:
        "Documents of all sources are there"
    input:
        expand("data/raw/{source}/manifest.json", source=SOURCES),


rule fetch_source:
    message:
        "Fetch the documents of {wildcards.source}"
    output:
        "data/raw/{source}/manifest.json",
    params:
        settings=settings("fetch"),
        code=code("fetch"),
    log:
        "logs/fetch.{source}.log",
    benchmark:
        "logs/benchmarks/fetch.{source}.jsonl"
    resources:
        mem_mb=1000,
    shell:
        "python -P workflow/scripts/fetch.py --settings {params.settings:q}"
        " --source {wildcards.source} --output data/raw/{wildcards.source}"


rule tokenizer:
    message:
        "Train or bring the tokenizer"
    input:
        expand("data/raw/{source}/manifest.json", source=SOURCES),
    output:
        "data/tokenizer/manifest.json",
    params:
        settings=settings("tokenizer"),
        code=code("tokenizer"),
    log:
        "logs/tokenizer.log",
    benchmark:
        "logs/benchmarks/tokenizer.jsonl"
    threads: workflow.cores
    resources:
        mem_mb=2000,
    shell:
        "python -P workflow/scripts/tokenizer.py --settings {params.settings:q}"
        " --raw data/raw --output data/tokenizer"


rule tokenize:
    message:
        "Tokens of all sources are there"
    input:
        expand("data/tokens/{source}/manifest.json", source=SOURCES),


rule tokenize_source:
    message:
        "Tokenize {wildcards.source}"
    input:
        raw="data/raw/{source}/manifest.json",
        tokenizer="data/tokenizer/manifest.json",
    output:
        "data/tokens/{source}/manifest.json",
    params:
        settings=settings("tokenize"),
        code=code("tokenize"),
    log:
        "logs/tokenize.{source}.log",
    benchmark:
        "logs/benchmarks/tokenize.{source}.jsonl"
    resources:
        mem_mb=1000,
    shell:
        "python -P workflow/scripts/tokenize.py --settings {params.settings:q}"
        " --source {wildcards.source} --raw data/raw/{wildcards.source}"
        " --tokenizer data/tokenizer --output data/tokens/{wildcards.source}"


rule mixture:
    message:
        "Pack the tokens of all domains into rows"
    input:
        expand("data/tokens/{source}/manifest.json", source=SOURCES),
        tokenizer="data/tokenizer/manifest.json",
    output:
        "data/mixture/manifest.json",
    params:
        settings=settings("mixture"),
        code=code("mixture"),
    log:
        "logs/mixture.log",
    benchmark:
        "logs/benchmarks/mixture.jsonl"
    resources:
        mem_mb=2000,
    shell:
        "python -P workflow/scripts/mixture.py --settings {params.settings:q}"
        " --tokens data/tokens --tokenizer data/tokenizer --output data/mixture"
