# Digests of what was fetched, one file for all sources: to clean any of them depends on all, and with
# each of n jobs depending on n files Snakemake takes minutes to start at 1,000 sources.
FETCHED = "work/fetched.sha256"


rule fetch:
    input:
        instances("fetch", "data/raw/{source}/manifest.json", source=SOURCES),
    output:
        FETCHED,
    log:
        "logs/fetch.log",
    message:
        "Documents of all sources are there"
    shell:
        "sha256sum data/raw/*/manifest.json 2> {log} | LC_ALL=C sort > {output}"


rule fetch_source:
    output:
        "data/raw/{source}/manifest.json",
        "provenance/data/raw/{source}.json",
    log:
        "logs/fetch.{source}.log",
    benchmark:
        "logs/benchmarks/fetch.{source}.jsonl"
    resources:
        mem_mb=data_memory(1000),
    params:
        settings=settings("fetch"),
        code=code("fetch"),
    message:
        "Fetch the documents of {wildcards.source}"
    shell:
        "python -P workflow/scripts/fetch.py --settings {params.settings:q}"
        " --source {wildcards.source} --output data/raw/{wildcards.source}"


rule clean:
    input:
        instances("clean", "data/clean/{source}/manifest.json", source=SOURCES),
    message:
        "Cleaned documents of all sources are there"


rule clean_source:
    input:
        # What is held out of any source must not be in the training text of this one.
        FETCHED,
        "data/raw/{source}/manifest.json",
    output:
        "data/clean/{source}/manifest.json",
        "provenance/data/clean/{source}.json",
    log:
        "logs/clean.{source}.log",
    benchmark:
        "logs/benchmarks/clean.{source}.jsonl"
    threads: CLEANING_TASKS
    resources:
        mem_mb=data_memory(1000 * CLEANING_TASKS),
    params:
        settings=settings("clean"),
        code=code("clean"),
    message:
        "Clean the documents of {wildcards.source}"
    shell:
        "python -P workflow/scripts/clean.py --settings {params.settings:q}"
        " --source {wildcards.source} --raw data/raw --output data/clean/{wildcards.source}"


rule tokenizer:
    input:
        expand("data/clean/{source}/manifest.json", source=SOURCES),
    output:
        "data/tokenizer/manifest.json",
        "provenance/data/tokenizer.json",
    log:
        "logs/tokenizer.log",
    benchmark:
        "logs/benchmarks/tokenizer.jsonl"
    threads: all_cores
    resources:
        mem_mb=data_memory(2000),
    params:
        settings=settings("tokenizer"),
        code=code("tokenizer"),
    message:
        "Train or bring the tokenizer"
    shell:
        "python -P workflow/scripts/tokenizer.py --settings {params.settings:q}"
        " --documents data/clean --output data/tokenizer"


rule tokenize:
    input:
        instances("tokenize", "data/tokens/{source}/manifest.json", source=SOURCES),
    message:
        "Tokens of all sources are there"


rule tokenize_source:
    input:
        documents="data/clean/{source}/manifest.json",
        tokenizer="data/tokenizer/manifest.json",
    output:
        "data/tokens/{source}/manifest.json",
        "provenance/data/tokens/{source}.json",
    log:
        "logs/tokenize.{source}.log",
    benchmark:
        "logs/benchmarks/tokenize.{source}.jsonl"
    threads: all_cores
    resources:
        mem_mb=lambda wildcards, threads, attempt: attempt * (1000 + 300 * threads),
    params:
        settings=settings("tokenize"),
        code=code("tokenize"),
    message:
        "Tokenize {wildcards.source}"
    shell:
        "python -P workflow/scripts/tokenize.py --settings {params.settings:q}"
        " --source {wildcards.source} --documents data/clean/{wildcards.source}"
        " --tokenizer data/tokenizer --output data/tokens/{wildcards.source}"


rule mixture:
    input:
        expand("data/tokens/{source}/manifest.json", source=SOURCES),
        tokenizer="data/tokenizer/manifest.json",
    output:
        "data/mixture/manifest.json",
        "provenance/data/mixture.json",
    log:
        "logs/mixture.log",
    benchmark:
        "logs/benchmarks/mixture.jsonl"
    resources:
        mem_mb=data_memory(2000),
    params:
        settings=settings("mixture"),
        code=code("mixture"),
    message:
        "Pack the tokens of all domains into rows"
    shell:
        "python -P workflow/scripts/mixture.py --settings {params.settings:q}"
        " --tokens data/tokens --tokenizer data/tokenizer --output data/mixture"


rule data_report:
    input:
        expand("data/raw/{source}/manifest.json", source=SOURCES),
        expand("data/clean/{source}/manifest.json", source=SOURCES),
        expand("data/tokens/{source}/manifest.json", source=SOURCES),
        mixture="data/mixture/manifest.json",
    output:
        manifest="data/report/manifest.json",
        provenance="provenance/data/report.json",
        table=report("data/report/table.html", caption="../report/data_table.rst", category="Data"),
        samples=report(
            "data/report/samples.html", caption="../report/data_samples.rst", category="Data"
        ),
        plots=[
            report(
                f"data/report/plots/{plot}.svg", caption=f"../report/{plot}.rst", category="Data"
            )
            for plot in ("document_lengths", "shares", "dropped")
        ],
    log:
        "logs/data_report.log",
    benchmark:
        "logs/benchmarks/data_report.jsonl"
    resources:
        mem_mb=data_memory(2000),
    params:
        settings=settings("data_report"),
        code=code("data_report"),
    message:
        "Count and draw what the data is"
    shell:
        "python -P workflow/scripts/data_report.py --settings {params.settings:q}"
        " --raw data/raw --documents data/clean --tokens data/tokens --mixture data/mixture"
        " --output data/report"


rule tasks:
    input:
        expand("data/clean/{source}/manifest.json", source=SOURCES),
    output:
        "data/tasks/manifest.json",
        "provenance/data/tasks.json",
    log:
        "logs/tasks.log",
    benchmark:
        "logs/benchmarks/tasks.jsonl"
    resources:
        mem_mb=data_memory(2000),
    params:
        settings=settings("tasks"),
        code=code("tasks"),
    message:
        "Bring the questions of benchmarks"
    shell:
        "python -P workflow/scripts/tasks.py --settings {params.settings:q}"
        " --documents data/clean --output data/tasks"
