PLOTS = {
    "held_out_loss": "Comparison",
    "training_loss": "Training",
    "domain_loss": "Training",
    "loss_variance": "Training",
    "gradient_norms": "Training",
    "loss_terms": "Training",
    "ternary_shares": "Ternary weights",
    "latent_weights": "Ternary weights",
    "ternary_scales": "Ternary weights",
    "code_changes": "Ternary weights",
}


rule evaluate:
    input:
        base="models/base/manifest.json",
        subln="models/subln/manifest.json",
        stage2="models/stage2/manifest.json",
        distill_ar="models/distill/ar/manifest.json",
        dlm="models/dlm/manifest.json",
        distill_dlm="models/distill/dlm/manifest.json",
        mixture="data/mixture/manifest.json",
        tasks="data/tasks/manifest.json",
    output:
        manifest="results/manifest.json",
        provenance="provenance/results.json",
        table=report("results/table.html", caption="../report/table.rst", category="Comparison"),
        samples=report(
            "results/samples.html", caption="../report/samples.rst", category="Comparison"
        ),
        plots=[
            report(f"results/plots/{plot}.svg", caption=f"../report/{plot}.rst", category=category)
            for plot, category in PLOTS.items()
        ],
    log:
        "logs/evaluate.log",
    benchmark:
        "logs/benchmarks/evaluate.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
        gpu=GPUS,
    params:
        settings=settings("evaluate"),
        code=code("evaluate"),
    message:
        "Compare every model of the run"
    shell:
        "python -P workflow/scripts/evaluate.py --settings {params.settings:q}"
        " --base models/base --subln models/subln --stage2 models/stage2"
        " --distill-ar models/distill/ar --dlm models/dlm --distill-dlm models/distill/dlm"
        " --mixture data/mixture --tasks data/tasks --output results"


rule export:
    input:
        model="models/distill/ar/manifest.json",
        mixture="data/mixture/manifest.json",
    output:
        "models/export/manifest.json",
        "provenance/models/export.json",
    log:
        "logs/export.log",
    benchmark:
        "logs/benchmarks/export.jsonl"
    threads: all_cores
    resources:
        mem_mb=model_memory,
    params:
        settings=settings("export"),
        code=code("export"),
    message:
        "Write the distilled student for other tools, and check it there"
    shell:
        "python -P workflow/scripts/export.py --settings {params.settings:q}"
        " --model models/distill/ar --mixture data/mixture --output models/export"
