# Research targets: no part of `all`.
#
#   snakemake control         what ternary weights cost against a dense model
#   snakemake synthesize      text that a teacher writes where the student is behind it
#   snakemake world_model     frames of videos predicted, dense and ternary
#   snakemake search          the settings of stage 2 with the lowest held-out loss
#   snakemake regmix          the best mixture that small trainings predict
#   snakemake microanneal     whether the candidate mixture is better than the present one
#   snakemake moe             other models, dense and ternary; likewise hybrid, depths: the names
#                             of architectures.each in params.yaml
#   snakemake experiments     which optimizer, clipping, quantizer and so on is best

REGMIX_RUNS = PARAMETERS["regmix"]["runs"]
ARMS = ("present", "candidate")
ARCHITECTURES = PARAMETERS["architectures"]["each"]
EXPERIMENTS = PARAMETERS["experiments"]["names"]
SEARCH_WORKERS = PARAMETERS["search"]["workers"]


rule control:
    input:
        model="models/base/manifest.json",
        subln="models/subln/manifest.json",
        stage2="models/stage2/manifest.json",
        distill_ar="models/distill/ar/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        manifest="research/control/manifest.json",
        provenance="provenance/research/control.json",
        table=report(
            "research/control/table.html",
            caption="../report/control_table.rst",
            category="Research",
        ),
    log:
        "logs/control.log",
    benchmark:
        "logs/benchmarks/control.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("control"),
        code=code("control"),
    message:
        "Train the dense model as long as the students"
    shell:
        "python -P workflow/scripts/control.py --settings {params.settings:q}"
        " --model models/base --subln models/subln --stage2 models/stage2"
        " --distill-ar models/distill/ar --mixture data/mixture --output research/control"


rule finetune:
    input:
        model="models/base/manifest.json",
        subln="models/subln/manifest.json",
        stage2="models/stage2/manifest.json",
    output:
        manifest="research/finetune/manifest.json",
        provenance="provenance/research/finetune.json",
        table=report(
            "research/finetune/table.html",
            caption="../report/finetune_table.rst",
            category="Research",
        ),
    log:
        "logs/finetune.log",
    benchmark:
        "logs/benchmarks/finetune.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("finetune"),
        code=code("finetune"),
    message:
        "Train the dense model and the ternary ones to classify"
    shell:
        "python -P workflow/scripts/finetune.py --settings {params.settings:q}"
        " --model models/base --subln models/subln --stage2 models/stage2"
        " --output research/finetune"


rule synthesize:
    input:
        expand("data/clean/{source}/manifest.json", source=SOURCES),
        student="models/distill/ar/manifest.json",
    output:
        "research/synthesize/manifest.json",
        "provenance/research/synthesize.json",
    log:
        "logs/synthesize.log",
    benchmark:
        "logs/benchmarks/synthesize.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("synthesize"),
        code=code("synthesize"),
    message:
        "Let a teacher write where the student is behind it"
    shell:
        "python -P workflow/scripts/synthesize.py --settings {params.settings:q}"
        " --student models/distill/ar --documents data/clean"
        " --output research/synthesize"


rule world_model:
    output:
        manifest="research/world_model/manifest.json",
        provenance="provenance/research/world_model.json",
        table=report(
            "research/world_model/table.html",
            caption="../report/world_model_table.rst",
            category="Research",
        ),
        frames=report(
            "research/world_model/plots/frames.svg",
            caption="../report/world_model_frames.rst",
            category="Research",
        ),
        losses=report(
            "research/world_model/plots/losses.svg",
            caption="../report/world_model_losses.rst",
            category="Research",
        ),
    log:
        "logs/world_model.log",
    benchmark:
        "logs/benchmarks/world_model.jsonl"
    threads: all_cores
    resources:
        mem_mb=3000,
        gpu=GPUS,
    params:
        settings=settings("world_model"),
        code=code("world_model"),
    message:
        "Train models that predict frames of videos"
    shell:
        "python -P workflow/scripts/world_model.py --settings {params.settings:q}"
        " --output research/world_model"


rule search:
    input:
        model="models/subln/manifest.json",
        teacher="models/base/manifest.json",
        teachers="models/teachers/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        manifest="research/search/manifest.json",
        provenance="provenance/research/search.json",
        preset="research/search/best.yaml",
        table=report(
            "research/search/table.html",
            caption="../report/search_table.rst",
            category="Research",
        ),
        plots=[
            report(
                f"research/search/plots/{plot}.svg",
                caption=f"../report/search_{plot}.rst",
                category="Research",
            )
            for plot in ("values", "trials")
        ],
    log:
        "logs/search.log",
    benchmark:
        "logs/benchmarks/search.jsonl"
    threads: SEARCH_WORKERS * PARAMETERS["search"]["threads"]
    resources:
        mem_mb=lambda wildcards, attempt: SEARCH_WORKERS * model_memory(wildcards, attempt),
        gpu=GPUS,
    params:
        settings=settings("search"),
        code=code("search"),
    message:
        "Try other settings of stage 2"
    shell:
        "python -P workflow/scripts/search.py --settings {params.settings:q}"
        " --model models/subln --teacher models/base --teachers models/teachers"
        " --mixture data/mixture --output research/search"


rule regmix_run:
    input:
        mixture="data/mixture/manifest.json",
    output:
        "research/regmix_run/{run}/manifest.json",
        "provenance/research/regmix_run/{run}.json",
    log:
        "logs/regmix_run.{run}.log",
    benchmark:
        "logs/benchmarks/regmix_run.{run}.jsonl"
    threads: PARAMETERS["regmix"]["threads"]
    resources:
        mem_mb=2000,
    params:
        settings=settings("regmix_run"),
        code=code("regmix_run"),
    message:
        "Train the small model of mixture {wildcards.run}"
    shell:
        "python -P workflow/scripts/regmix_run.py --settings {params.settings:q}"
        " --run {wildcards.run} --mixture data/mixture"
        " --output research/regmix_run/{wildcards.run}"


rule regmix:
    input:
        expand("research/regmix_run/{run}/manifest.json", run=REGMIX_RUNS),
    output:
        manifest="research/regmix/manifest.json",
        provenance="provenance/research/regmix.json",
        recipe="research/regmix/recipe.yaml",
        table=report(
            "research/regmix/table.html",
            caption="../report/regmix_table.rst",
            category="Research",
        ),
        plots=[
            report(
                f"research/regmix/plots/{plot}.svg",
                caption=f"../report/{plot}.rst",
                category="Research",
            )
            for plot in ("predicted_losses", "mixture_weights")
        ],
    log:
        "logs/regmix.log",
    benchmark:
        "logs/benchmarks/regmix.jsonl"
    resources:
        mem_mb=2000,
    params:
        settings=settings("regmix"),
        code=code("regmix"),
    message:
        "Predict the best mixture from the small trainings"
    shell:
        "python -P workflow/scripts/regmix.py --settings {params.settings:q}"
        " --runs research/regmix_run --output research/regmix"


rule microanneal_run:
    input:
        model="models/base/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        "research/microanneal_run/{arm}/manifest.json",
        "provenance/research/microanneal_run/{arm}.json",
    log:
        "logs/microanneal_run.{arm}.log",
    benchmark:
        "logs/benchmarks/microanneal_run.{arm}.jsonl"
    threads: PARAMETERS["microanneal"]["threads"]
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("microanneal_run"),
        code=code("microanneal_run"),
    message:
        "Short anneals on the {wildcards.arm} mixture"
    shell:
        "python -P workflow/scripts/microanneal_run.py --settings {params.settings:q}"
        " --arm {wildcards.arm} --model models/base --mixture data/mixture"
        " --output research/microanneal_run/{wildcards.arm}"


rule microanneal:
    input:
        expand("research/microanneal_run/{arm}/manifest.json", arm=ARMS),
    output:
        manifest="research/microanneal/manifest.json",
        provenance="provenance/research/microanneal.json",
        table=report(
            "research/microanneal/table.html",
            caption="../report/microanneal_table.rst",
            category="Research",
        ),
        plot=report(
            "research/microanneal/plots/differences.svg",
            caption="../report/differences.rst",
            category="Research",
        ),
    log:
        "logs/microanneal.log",
    benchmark:
        "logs/benchmarks/microanneal.jsonl"
    resources:
        mem_mb=1000,
    params:
        settings=settings("microanneal"),
        code=code("microanneal"),
    message:
        "Is the candidate mixture better?"
    shell:
        "python -P workflow/scripts/microanneal.py --settings {params.settings:q}"
        " --present research/microanneal_run/present"
        " --candidate research/microanneal_run/candidate --output research/microanneal"


rule experiment:
    input:
        mixture="data/mixture/manifest.json",
    output:
        "research/experiment/{experiment}/manifest.json",
        "provenance/research/experiment/{experiment}.json",
    log:
        "logs/experiment.{experiment}.log",
    benchmark:
        "logs/benchmarks/experiment.{experiment}.jsonl"
    threads: PARAMETERS["experiments"]["runs"]["threads"]
    resources:
        mem_mb=3000,
    params:
        settings=settings("experiment"),
        code=code("experiment"),
    message:
        "Small trainings of the experiment {wildcards.experiment}"
    shell:
        "python -P workflow/scripts/experiment.py --settings {params.settings:q}"
        " --experiment {wildcards.experiment} --mixture data/mixture"
        " --output research/experiment/{wildcards.experiment}"


rule experiments:
    input:
        expand("research/experiment/{experiment}/manifest.json", experiment=EXPERIMENTS),
    output:
        manifest="research/experiments/manifest.json",
        provenance="provenance/research/experiments.json",
        table=report(
            "research/experiments/table.html",
            caption="../report/experiments_table.rst",
            category="Research",
        ),
        claims=report(
            "research/experiments/plots/claims.svg",
            caption="../report/claims.rst",
            category="Research",
        ),
        plots=[
            report(
                f"research/experiments/plots/{experiment}.svg",
                caption="../report/experiment.rst",
                category="Research",
            )
            for experiment in EXPERIMENTS
        ],
    log:
        "logs/experiments.log",
    benchmark:
        "logs/benchmarks/experiments.jsonl"
    resources:
        mem_mb=2000,
    params:
        settings=settings("experiments"),
        code=code("experiments"),
    message:
        "What the experiments say"
    shell:
        "python -P workflow/scripts/experiments.py --settings {params.settings:q}"
        " --runs research/experiment --output research/experiments"


rule architecture:
    input:
        mixture="data/mixture/manifest.json",
        tokenizer="data/tokenizer/manifest.json",
        teachers="models/teachers/manifest.json",
    output:
        manifest="research/architecture/{architecture}/manifest.json",
        provenance="provenance/research/architecture/{architecture}.json",
        table=report(
            "research/architecture/{architecture}/table.html",
            caption="../report/architecture_table.rst",
            category="Research",
        ),
        ternary=report(
            "research/architecture/{architecture}/plots/ternary_shares.svg",
            caption="../report/architecture_ternary.rst",
            category="Research",
        ),
    log:
        "logs/architecture.{architecture}.log",
    benchmark:
        "logs/benchmarks/architecture.{architecture}.jsonl"
    threads: all_cores
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 3000,
        gpu=GPUS,
    params:
        settings=settings("architecture"),
        code=code("architecture"),
    message:
        "Train the model {wildcards.architecture}, dense and ternary"
    shell:
        "python -P workflow/scripts/architecture.py --settings {params.settings:q}"
        " --architecture {wildcards.architecture} --mixture data/mixture"
        " --tokenizer data/tokenizer --teachers models/teachers"
        " --output research/architecture/{wildcards.architecture}"


for architecture in ARCHITECTURES:

    rule:
        name:
            architecture
        input:
            instances(
                architecture,
                "research/architecture/{architecture}/manifest.json",
                architecture=architecture,
            ),
        localrule: True
        message:
            "The model is there, dense and ternary"
