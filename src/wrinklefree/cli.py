"""``wrinklefree``: small commands around ``params.yaml``, artifacts and the two engines."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
import warnings
from pathlib import Path

from wrinklefree.errors import UserError

PARAMS = Path("params.yaml")
_GENERATED_CONTEXT = 2048


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(prog="wrinklefree", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check params.yaml, with presets over it if given")
    check.add_argument("presets", nargs="*", metavar="preset")
    check.add_argument("--params", type=Path, default=PARAMS, help="another file than params.yaml")
    check.add_argument("--output", type=Path, help="a file to write when all is valid, for DVC")
    preset = commands.add_parser("preset", help="lay a preset into params.yaml, for DVC")
    preset.add_argument("name", help="a name in params/, or the path of a YAML file")
    verify = commands.add_parser("verify", help="check the files of artifacts against manifests")
    verify.add_argument("folders", nargs="+", type=Path)
    verify.add_argument(
        "--current",
        action="store_true",
        help="and that they were made with the present settings and code",
    )
    lineage = commands.add_parser("lineage", help="show from what an artifact was made, and how")
    lineage.add_argument("folder", type=Path)
    compare = commands.add_parser("compare", help="runs of several seeds in one table")
    compare.add_argument("runs", type=Path, nargs="+", help="folders in which the pipeline ran")
    answer = commands.add_parser("answer", help="what the run came to, as at the end of snakemake")
    answer.add_argument(
        "--when-whole", action="store_true", help="if results and export are of one model, for DVC"
    )
    attach = commands.add_parser("attach", help="put a file beside the run's results in MLflow")
    attach.add_argument("file", type=Path)
    restore = commands.add_parser("restore", help="put back the last finished artifacts")
    restore.add_argument("folders", nargs="*", type=Path, help="none: list what can be put back")
    continue_ = commands.add_parser(
        "continue", help="have the next run of a stage go on from its last checkpoint"
    )
    continue_.add_argument("stage", help="stage2, or distill.ar of a stage that has several")
    continue_.add_argument("--from", dest="key", metavar="KEY", help="not the newest training")
    code = commands.add_parser("code", help="compare dvc.yaml with what the stages import")
    code.add_argument("--write", action="store_true", help="bring dvc.yaml up to date")
    settings = commands.add_parser("settings", help="compare docs/settings.md with the settings")
    settings.add_argument("--write", action="store_true", help="bring it and its schema up to date")
    _add_catalog(commands)
    plan = commands.add_parser("plan", help="what each training needs of memory and time")
    plan.add_argument("--configfile", nargs="*", default=[], metavar="preset", dest="presets")
    plan.add_argument("--stage", help="stage2, or distill.ar; all if not given")
    plan.add_argument("--devices", type=_count, default=1, help="which share the training")
    plan.add_argument(
        "--tflops",
        type=float,
        default=200.0,
        help="what a device sustains, 10^12 operations a second; 200 if not given, a fifth of the"
        " bfloat16 peak of an H100",
    )
    generate = commands.add_parser("generate", help="go on from a text with a GGUF file")
    generate.add_argument("file", type=Path)
    generate.add_argument("prompt")
    generate.add_argument("--tokens", type=_count, default=64, help="most new ones; 64")
    hash_ = commands.add_parser(
        "hash", help="the sha256 that local files, or a base model, are pinned by"
    )
    hash_.add_argument(
        "paths", nargs="+", help="a source's paths, files or quoted globs; or a model's one folder"
    )
    arguments = parser.parse_args()
    warnings.showwarning = _show_warning
    try:
        {
            "check": _check,
            "preset": _preset,
            "verify": _verify,
            "lineage": _lineage,
            "compare": _compare,
            "answer": _answer,
            "attach": _attach,
            "restore": _restore,
            "continue": _continue,
            "code": _code,
            "settings": _settings,
            "hash": _hash,
            "catalog": _catalog,
            "recipe": _recipe,
            "plan": _plan,
            "generate": _generate,
        }[arguments.command](arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as head, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that can't be written
        _tell_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell_error(error: Exception) -> None:
    from wrinklefree.tracking.files import explain_system_error
    from wrinklefree.tracking.terminal import printable

    explained = explain_system_error(error, "a file") or error
    print(printable(f"error: {explained}"), file=sys.stderr)


def _show_warning(message: Warning | str, *_: object) -> None:
    from wrinklefree.tracking.terminal import printable

    print(printable(f"warning: {message}"), file=sys.stderr)


def _add_catalog(commands: argparse._SubParsersAction) -> None:
    catalog = commands.add_parser("catalog", help="list the data sets and recipes of catalog.yaml")
    actions = catalog.add_subparsers(dest="action")
    show = actions.add_parser("show", help="tell all about one of them")
    show.add_argument("name")
    check = actions.add_parser("check", help="tell which data sets this machine can reach")
    check.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="data sets or recipes, with status 1 unless all can be reached; none: the whole"
        " catalog, with status 0",
    )
    recipe = commands.add_parser("recipe", help="write a preset that trains on a mixture")
    recipe.add_argument("recipe", help="a name in catalog.yaml, or the path of a file of weights")
    recipe.add_argument("--max-tokens", type=_count, help="to read in all, shared by weight")
    recipe.add_argument(
        "--revision",
        action="append",
        default=[],
        type=_assignment,
        metavar="DATASET=COMMIT",
        help="read this commit of a data set; may be given several times",
    )
    recipe.add_argument("--output", type=Path, help="params/<recipe>.yaml if not given")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r}: write DATASET=COMMIT")
    return name, value


def _once_each(assignments: list[tuple[str, str]]) -> dict[str, str]:
    revisions = dict(assignments)
    if len(revisions) < len(assignments):
        raise UserError("--revision names a data set twice; give one commit for each")
    return revisions


def _check(arguments: argparse.Namespace) -> None:
    from wrinklefree.config.load import read_settings
    from wrinklefree.config.presets import find_preset
    from wrinklefree.tracking.files import write_atomically

    files = [arguments.params, *map(find_preset, arguments.presets)]
    read_settings(*files)
    said = f"{' with '.join(map(str, files))}: all settings are valid"
    print(said)
    if arguments.output:
        write_atomically(arguments.output, f"{said}\n")


def _preset(arguments: argparse.Namespace) -> None:
    from wrinklefree.config.presets import find_preset, lay_into
    from wrinklefree.tracking.files import write_atomically

    path = find_preset(arguments.name)
    write_atomically(PARAMS, lay_into(PARAMS, path))
    print(f"{PARAMS} now has {path} laid over it; git diff {PARAMS} shows what changed")


def _verify(arguments: argparse.Namespace) -> None:
    from wrinklefree.engines.current import check_current
    from wrinklefree.schema.load import read_yaml, without_nulls
    from wrinklefree.tracking.artifact import open_artifact

    damaged = 0
    for folder in [found for given in arguments.folders for found in _artifacts_in(given)]:
        try:
            artifact = open_artifact(folder)
            manifest = artifact.manifest
            if arguments.current:
                check_current(artifact, without_nulls(read_yaml(PARAMS)))
        except (UserError, OSError) as error:  # the others are looked at all the same
            _tell_error(error)
            damaged += 1
        else:
            print(f"{folder}: whole, stage {manifest.stage}, files: {len(manifest.files)}")
    if damaged:
        sys.exit(2)


def _lineage(arguments: argparse.Namespace) -> None:
    from wrinklefree.tracking.provenance import lineage
    from wrinklefree.tracking.terminal import printable

    print(printable(lineage(arguments.folder)), end="")


def _compare(arguments: argparse.Namespace) -> None:
    from wrinklefree.evaluate.runs import compare_runs

    print(compare_runs(arguments.runs))


def _answer(arguments: argparse.Namespace) -> None:
    from wrinklefree.engines.answer import is_whole
    from wrinklefree.engines.what_next import what_next

    if arguments.when_whole and not is_whole():
        return
    if not (lines := what_next(since=0.0)):
        raise UserError("results, models/export: not made yet; run the stage evaluate or export")
    print(*lines, sep="\n")


def _attach(arguments: argparse.Namespace) -> None:
    from wrinklefree.tracking.attach import attach

    print(attach(arguments.file, Path("results")))


def _restore(arguments: argparse.Namespace) -> None:
    from wrinklefree.tracking.kept import has_copy, kept_artifacts, restore_alone

    for folder in arguments.folders:
        stage = restore_alone(folder)
        print(f"{folder}: put back as stage {stage} left it")
    if arguments.folders:
        print("an engine makes it again only where inputs, settings or code are other than then")
        return
    for folder in kept_artifacts():
        print(f"{folder}: {'gone, can be put back' if has_copy(folder) else 'stands'}")


def _continue(arguments: argparse.Namespace) -> None:
    from wrinklefree.tracking.trainings import ask_to_continue

    training = ask_to_continue(arguments.stage, arguments.key)
    print(
        f"the next run of {arguments.stage} goes on from step {training.step} in {training.folder},"
        " under the settings, code and inputs that it then has; an engine runs the stage when one"
        " of them is edited, or when it is forced"
    )


def _artifacts_in(folder: Path) -> list[Path]:
    """``folder``, or the artifacts below it where it is none itself, as models/distill."""
    from wrinklefree.tracking.artifact import MANIFEST

    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(manifest.parent for manifest in folder.rglob(MANIFEST)) or [folder]


def _code(arguments: argparse.Namespace) -> None:
    from wrinklefree.engines.dvc_code import PIPELINES, with_current_code
    from wrinklefree.tracking.files import write_atomically

    for path in PIPELINES:
        current = with_current_code(path, Path.cwd())
        if current == path.read_text(encoding="utf-8"):
            print(f"{path}: up to date")
        elif arguments.write:
            write_atomically(path, current)
            print(f"{path}: code dependencies brought up to date")
        else:
            raise UserError(
                f"{path}: lists other folders of code than the stages import from;"
                " run `wrinklefree code --write` and commit the result"
            )


def _settings(arguments: argparse.Namespace) -> None:
    from wrinklefree.config.reference import DOCUMENT, SCHEMA, document_text, schema_text
    from wrinklefree.tracking.files import write_atomically

    for path, text in ((DOCUMENT, document_text()), (SCHEMA, schema_text())):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            print(f"{path}: up to date")
        elif arguments.write:
            write_atomically(path, text)
            print(f"{path}: written")
        else:
            raise UserError(
                f"{path}: does not say what the settings are now; run"
                " `wrinklefree settings --write` and commit the result"
            )


def _catalog(arguments: argparse.Namespace) -> None:
    from wrinklefree.config.catalog import read_catalog
    from wrinklefree.config.catalog_check import check_catalog
    from wrinklefree.config.catalog_text import describe, list_catalog

    catalog = read_catalog()
    if arguments.action == "check":
        said, reached_all = check_catalog(catalog, arguments.names)
        print(said)
        sys.exit(1 if arguments.names and not reached_all else 0)
    print(describe(catalog, arguments.name) if arguments.action else list_catalog(catalog))


def _recipe(arguments: argparse.Namespace) -> None:
    from wrinklefree.config.catalog import make_preset

    path = make_preset(
        arguments.recipe,
        PARAMS,
        arguments.output,
        _once_each(arguments.revision),
        arguments.max_tokens,
    )
    print(f"{path}: run snakemake all -n --configfile {path}, or wrinklefree preset {path} for DVC")


def _plan(arguments: argparse.Namespace) -> None:
    from wrinklefree.config.load import read_settings, validate
    from wrinklefree.config.presets import find_preset
    from wrinklefree.plan.report import report

    settings = validate(read_settings(PARAMS, *map(find_preset, arguments.presets)))
    print(report(settings, arguments.stage, arguments.devices, arguments.tflops))


def _generate(arguments: argparse.Namespace) -> None:
    from wrinklefree.export.llama_cpp import opened
    from wrinklefree.tracking.terminal import printable

    try:
        arguments.prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            "the prompt is not UTF-8; set the terminal and its locale to UTF-8"
        ) from error
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with opened(arguments.file, context=_GENERATED_CONTEXT) as model:
        pieces = model.generate(arguments.prompt, arguments.tokens)
        first = next(pieces, b"")  # or what is wrong with the prompt
        print(printable(arguments.prompt + decoder.decode(first)), end="", flush=True)
        for piece in pieces:
            print(printable(decoder.decode(piece)), end="", flush=True)
    print(printable(decoder.decode(b"", final=True)))


def _hash(arguments: argparse.Namespace) -> None:
    from wrinklefree.downloads.local_files import digest_of_files, files_of_folder, find_files

    first = Path(arguments.paths[0])
    if len(arguments.paths) == 1 and first.is_dir():
        files = files_of_folder(first)
    else:
        files = find_files(arguments.paths)
    print(f"{len(files)} files, {next(iter(files))} the first", file=sys.stderr)
    print(digest_of_files(files))


if __name__ == "__main__":
    main()
