"""`swiftmask verify FOLDER`, or `python tools/verify FOLDER`: our models against recorded numbers."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from swiftmask.cli.progress import progress_bar

if TYPE_CHECKING:
    from verify.cases import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Compare our models with recorded numbers of the references; exit code 1 if anything differs."""

    folder: Positional[Path]
    """Folder of golden files."""
    only: str | None = None
    """Only cases whose names begin with this."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from verify.cases import verify_folder

        with progress_bar() as progress:
            task = progress.add_task("verifying", total=None, unit="cases")
            reports = verify_folder(
                self.folder,
                only=self.only,
                on_case=lambda done, total: progress.update(task, completed=done, total=total),
            )
        failed = [report.name for report in reports if report.status == "failed"]
        if self.json:
            cases = [asdict(report) for report in reports]
            print(json_module.dumps({"ok": not failed, "failed": failed, "cases": cases}, indent=2))
        else:
            _print_table(reports)
        return 1 if failed else 0


def _print_table(reports: "list[Report]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("case", "max abs error", "tolerance", "ok")
    for report in reports:
        if not report.checks:
            said = f": {escape(report.message)}" if report.message else ""
            table.add_row(f"{report.name}{said}", "", "", "[red]no[/]")
        for name, error, tolerance, ok, note in _rows(report):
            said = f" ({escape(note)})" if note else ""
            table.add_row(
                f"{report.name}: {name}{said}", error, tolerance, "[green]yes[/]" if ok else "[red]no[/]"
            )
    console = Console()
    console.print(table)
    counts = {word: sum(report.status == word for report in reports) for word in ("passed", "failed")}
    console.print(", ".join(f"{count} {word}" for word, count in counts.items()))


def _rows(report: "Report") -> list[tuple[str, str, str, bool, str]]:
    """One row a check; checks that passed under one heading ("reveal_counts ...") share a row."""
    rows, together = [], {}
    for check in report.checks:
        heading = check.name.split(" ")[0]
        if check.ok and check.name.startswith(("reveal_counts ", "full_steps ")):
            together[heading] = together.get(heading, 0) + 1
            continue
        error = "-" if check.error is None else f"{check.error:.3g}"
        rows.append(
            (
                check.name,
                error,
                f"{check.tolerance:.3g}" if check.tolerance else "exact",
                check.ok,
                check.note,
            )
        )
    rows += [(f"{heading} ({count})", "0", "exact", True, "") for heading, count in together.items()]
    return rows


if __name__ == "__main__":
    import sys

    from swiftmask.cli import main

    main(["verify", *sys.argv[1:]])
