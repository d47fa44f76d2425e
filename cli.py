"""The command line. Every command is a few lines over the library; nothing here computes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import BodyplanError

if TYPE_CHECKING:
    from .search.sweep import Sweep

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Search the space of body plans of neural networks.")

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a sweep.", show_default=False)]
Number = Annotated[int, typer.Argument(metavar="ID", help="The number of a trial.", show_default=False)]


def main() -> None:
    """Run the command line: a mistake of the user is one message and exit code 2, a stopped run is exit code 1."""
    try:
        app()
    except (ValueError, TypeError, BodyplanError, FileNotFoundError) as error:
        if "--traceback" in sys.argv:
            raise
        typer.echo(f"bodyplan: {error}", err=True)
        sys.exit(1 if isinstance(error, BodyplanError) else 2)
    except KeyboardInterrupt:
        typer.echo("bodyplan: interrupted; what is finished is in the journal", err=True)
        sys.exit(130)


@app.command()
def sweep(file: Annotated[str, typer.Argument(metavar="FILE.py[:NAME]", show_default=False,
                                              help="A file that defines a Sweep or a function returning one.")],
          dry_run: Annotated[bool, typer.Option("--dry-run", help="Size, samples, expected time and memory.")] = False,
          quiet: Annotated[bool, typer.Option("--quiet", help="Only the summary at the end.")] = False) -> None:
    """Run the sweep that FILE.py defines (the name `sweep`, or the only Sweep in it)."""
    from .search.launch import load_sweep

    _run(load_sweep(file), dry_run, quiet)


@app.command()
def demo(minutes: Annotated[float, typer.Option(help="Time to aim for on two CPU cores.")] = 12.0,
         directory: Annotated[Path, typer.Option(help="Where the sweep goes.")] = Path("runs/demo"),
         dry_run: Annotated[bool, typer.Option("--dry-run", help="Size, samples, expected time and memory.")] = False
         ) -> None:
    """The sweep of experiments/first_sweep.py: hybrid language models on embedded text, down to an exported model."""
    from .search.launch import load_sweep

    file = Path(__file__).parent / "experiments" / "first_sweep.py"
    _run(load_sweep(f"{file}:sweep", minutes=minutes, directory=str(directory.resolve())), dry_run, quiet=False)


@app.command()
def resume(directory: Directory,
           quiet: Annotated[bool, typer.Option("--quiet", help="Only the summary at the end.")] = False) -> None:
    """Continue a stopped sweep to its budget; nothing finished is done again."""
    from .search.launch import reload_sweep

    _run(reload_sweep(directory), dry_run=False, quiet=quiet, resume=True)


def _run(made: Sweep, dry_run: bool, quiet: bool, resume: bool = False) -> None:
    from .search.launch import speak

    if dry_run:
        typer.echo(str(made.dry_run()))
        return
    made.quiet = made.quiet or quiet
    made.run(resume=resume)
    speak(made.directory, typer.echo)


@app.command()
def front(directory: Directory,
          as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
          as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead of a table.")] = False) -> None:
    """Print the front of a sweep, from its journal alone."""
    from .search.front import Front
    from .search.journal import Journal
    from .search.progress import console, front_table

    with Journal.open(directory) as journal:
        found = Front.from_journal(journal)
    if as_json:
        typer.echo(found.to_frame().to_json(orient="records", indent=2))
    elif as_csv:
        typer.echo(found.to_frame().to_csv(index=False))
    else:
        console(sys.stdout).print(front_table(found))


@app.command()
def show(directory: Directory, number: Number) -> None:
    """Show a trial: its architecture as a tree, its costs, its objectives, or why it failed."""
    from .search.launch import candidate

    point = candidate(directory, number)
    typer.echo(f"trial {number}, {point.state}, {point.short}")
    for name, value in point.values.items():
        interval = point.intervals.get(name)
        typer.echo(f"  {name}: {value:g}" + (f"  [{interval[0]:g}, {interval[1]:g}]" if interval else ""))
    if point.failure:
        typer.echo(f"  failed: {point.failure}")
    typer.echo(point.architecture.draw())
    cost = point.architecture.cost()
    typer.echo(f"{cost.parameters:,} parameters; at {cost.length} tokens {cost.macs:,.0f} multiply-adds, "
               f"{cost.decode_macs:,.0f} for one more token, {cost.state_bytes:,} bytes of state (fp32)")


@app.command()
def compare(directory: Directory, first: Number, second: Number) -> None:
    """Compare two trials: what was decided otherwise, and what it did to the objectives."""
    from .search.launch import candidate

    a, b = candidate(directory, first), candidate(directory, second)
    typer.echo(a.architecture.diff(b.architecture))
    for name in a.values:
        if name in b.values:
            typer.echo(f"{name}: {a.values[name]:g} -> {b.values[name]:g} ({b.values[name] - a.values[name]:+g})")


@app.command(name="export")
def export_command(directory: Directory, number: Number,
                   to: Annotated[Path, typer.Argument(metavar="TO", help="The folder to write.", show_default=False)]
                   ) -> None:
    """Write a trial as a standalone model folder that does not need bodyplan."""
    from .search.launch import candidate
    from .space.export import export

    export(candidate(directory, number), to)
    typer.echo(f"exported trial {number} to {to}; next: cd {to} && python test_export.py")


@app.command()
def fidelity(directory: Directory,
             candidates: Annotated[int | None, typer.Option(help="How many to train alone, spread over size.")] = None,
             steps: Annotated[int | None, typer.Option(help="Training steps of each; default: the sweep's.")] = None,
             seeds: Annotated[int | None, typer.Option(help="2 measures the ceiling too.", show_default="1")] = None
             ) -> None:
    """How well the sweep's scores rank candidates against training alone, beside parameters and MACs.

    Prints what is recorded; with options, or where nothing is, trains what is missing and records it.
    """
    from .search.launch import reload_sweep
    from .search.standalone import recorded
    from .search.summary import fidelity_lines

    asked = {"candidates": candidates, "steps": steps, "seeds": seeds}
    given = {name: value for name, value in asked.items() if value is not None}
    body = (None if given else recorded(directory)) or reload_sweep(directory).measure_fidelity(**given)
    for line in fidelity_lines(body):
        typer.echo(line)


@app.command()
def report(directory: Directory) -> None:
    """Write report.html: one file with the front, the figures and how everything was measured."""
    from .dashboards.report import write_report

    path = Path(directory) / "report.html"
    write_report(directory, path)
    typer.echo(f"wrote {path}")


@app.command()
def ui(directory: Directory,
       port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.")] = 0) -> None:
    """Serve the sweep's MLflow store on loopback and print the link of the Pareto view."""
    from .dashboards.ui import serve

    serve(directory, port=port)


@app.command()
def profile(device: Annotated[str, typer.Argument(metavar="DEVICE", help="cpu or cuda:0.", show_default=False)],
            width: Annotated[list[int] | None, typer.Option(help="Residual width; may be repeated.",
                                                            show_default="128")] = None,
            length: Annotated[list[int] | None, typer.Option(help="Tokens of context; may be repeated.",
                                                             show_default="256")] = None,
            batch: Annotated[list[int] | None, typer.Option(help="Sequences at once; may be repeated.",
                                                            show_default="1")] = None,
            phase: Annotated[list[str] | None, typer.Option(help="prefill, decode or train; may be repeated.",
                                                            show_default="prefill and decode")] = None,
            dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
            mode: Annotated[str, typer.Option(help="eager, compiled or graph.")] = "eager",
            of: Annotated[str | None, typer.Option(metavar="FILE.py[:NAME]", help="The operators and widths of a sweep's "
                                                   "space, instead of a few examples.", show_default=False)] = None,
            save: Annotated[Path | None, typer.Option(help="Write a profile (JSON).", show_default=False)] = None,
            roofline: Annotated[bool, typer.Option("--roofline", help="Measure nothing: what operators do, move and least "
                                                   "take; DEVICE may be h200, h100 or a100.")] = False,
            emit: Annotated[Path | None, typer.Option(help="Measure nothing: write a script for a machine without bodyplan.",
                                                      show_default=False)] = None) -> None:
    """Measure operators on a device: prefill and decode, median with a bootstrap interval."""
    from .evaluators.latency import session

    space = None
    if of is not None:
        from .search.launch import load_sweep

        space = load_sweep(of).space
    asked = session.Asked(device, width, length, batch, phase, dtype, mode, space)
    if roofline:
        for line in session.rooflines(asked):
            typer.echo(line)
        return
    if emit is not None:
        typer.echo(session.emitted(asked, emit, save))
        return
    for line in session.profiled(asked, save, shlex.join(["bodyplan", *sys.argv[1:]])):
        typer.echo(line)


@app.command()
def ops(name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One operator.", show_default=False)] = None,
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False) -> None:
    """List the operators: class, attention patterns, cost in T, state, source. With a NAME, the page of one."""
    from .ops import operator_page, operator_table, rows_to_json
    from .search.progress import console

    if name is not None:
        typer.echo(operator_page(name))
    elif as_json:
        typer.echo(rows_to_json())
    else:
        console(sys.stdout).print(operator_table())


@app.command()
def systems(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
            as_markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/systems.md.")] = False) -> None:
    """List the systems of the catalogue and whether they work here."""
    from .systems import catalogue, to_json, to_markdown, to_text

    render = to_json if as_json else to_markdown if as_markdown else to_text
    typer.echo(render(catalogue()))


if __name__ == "__main__":
    main()
