"""Measure every number of the README and the docs again: the commands behind the files in `results/`.

    python benchmarks/run.py --list
    python benchmarks/run.py                      # all of them: hours on two CPU cores
    python benchmarks/run.py maskgit-512-speed-bfloat16

Runs one command after the other, stops at the first that fails, and goes on where it stopped when called
again with what is left. `tests/test_readme.py` then fails until the README shows the new numbers.

`results/NAME/measurements.jsonl`, where there is one, holds every evaluation seed of a table.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results")
REPORTS = Path("docs/reports")
"""Below ROOT, where the commands run: a record that names its command names no folder of one machine."""

_SPEED = (
    "{swiftmask} bench speed maskgit-512 --random-weights --device cpu --batch-size 1 --steps 32 "
    "--full-steps 12"
)
_DIMOO = "{swiftmask} bench speed lumina-dimoo --random-weights --out {file}"
_SAMPLER = "{python} benchmarks/mar_straightforward.py mar-b"

COMMANDS = {
    "maskgit-scenes/report": (
        "{swiftmask} bench maskgit-scenes --shortcut auto --steps 4 6 8 12 16 24 32 "
        "--budgets 16:4 16:6 --baselines reuse extrapolation-1 extrapolation-2 --images 672 "
        "--batch-size 96 --seeds 3 --dtype bfloat16 --device cpu --out "
        "{results}/maskgit-scenes"
    ),
    "guidance/maskgit-scenes/report": (
        "{swiftmask} bench maskgit-scenes --shortcut auto --steps 4 8 16 --budgets 16:6 "
        "--baselines --unguided 4 6 8 12 16 24 16:4 16:6 --images 672 --seeds 3 --batch-size 48 "
        "--dtype float32 --device cpu --out {results}/guidance/maskgit-scenes"
    ),
    "facts/meissonic-scenes/report": (
        "{swiftmask} bench meissonic-scenes --shortcut none --steps 4 8 24 --baselines "
        "--speed-rl meissonic-scenes-speed-rl --speed-rl-steps 4 8 --images 336 --seeds 2 --batch-size 48 "
        "--dtype float32 --device cpu --out {results}/facts/meissonic-scenes"
    ),
    "sampling/meissonic-scenes/report": (
        "{swiftmask} bench meissonic-scenes --shortcut none --steps 8 24 --baselines --temperatures 0.6 "
        "--schedule-powers 2 --speed-rl meissonic-scenes-speed-rl --speed-rl-steps 8 12 --images 672 "
        "--seeds 3 --batch-size 48 --dtype float32 --device cpu --out {results}/sampling/meissonic-scenes"
    ),
    "sampling/dimoo-scenes/report": (
        "{swiftmask} bench dimoo-scenes --shortcut none --steps 16 --baselines --schedule-powers 2 "
        "--images 672 --seeds 3 --batch-size 48 --dtype float32 --device cpu "
        "--out {results}/sampling/dimoo-scenes"
    ),
    "maskgit-scenes-placement": (
        "{python} benchmarks/placement.py maskgit-scenes --budgets 16:4 16:6 --images 288 --seeds 3 "
        "--out {results}"
    ),
    "maskgit-scenes-speedup-2-tuning": (
        "{swiftmask} tune maskgit-scenes --speedup 2 --dtype float32 --device cpu --out {results}"
    ),
    "mar-scenes/report": (
        "{swiftmask} bench mar-scenes --shortcut none --steps 16 --denoising-steps 50 25 10 5 2 "
        "--ddim-steps 50 25 10 5 2 1 4x5 8x5 8x10 --disa 50:5 "
        "--marval mar-scenes-marval mar-scenes-marval-rl --marval-steps 4 8 16 32 "
        "--images 672 --seeds 3 --batch-size 96 --dtype bfloat16 --device cpu --out {results}/mar-scenes"
    ),
    "mar-emoji/report": (
        "{swiftmask} bench mar-emoji --shortcut none --steps 16 --ddim-steps 10 "
        "--marval mar-emoji-marval mar-emoji-marval-rl --marval-steps 8 16 --only vanilla-16 ddim-16x10 "
        "mar-emoji-marval-8 mar-emoji-marval-16 mar-emoji-marval-rl-8 mar-emoji-marval-rl-16 "
        "--scorer reader=emoji-judge reader=emoji-reward --images 200 --seeds 3 --out {results}/mar-emoji"
    ),
    "maskgit-emoji/report": (
        "{swiftmask} bench maskgit-emoji --steps 4 8 16 --budgets 16:6 --baselines reuse "
        "--only vanilla-4 vanilla-8 vanilla-16 reuse-16:6 --shortcut none "
        "--scorer reader=emoji-judge reader=emoji-reward --images 200 --seeds 3 --out {results}/maskgit-emoji"
    ),
    "meissonic-emoji/report": (
        "{swiftmask} bench meissonic-emoji --prompts runs/emoji/prompts-trained.jsonl --steps 1 2 4 8 16 "
        "--budgets 16:6 --baselines reuse --unguided 4 "
        "--only vanilla-1 vanilla-2 vanilla-4 vanilla-8 vanilla-16 unguided-4 reuse-16:6 "
        "--scorer reader=emoji-judge reader=emoji-reward --images 200 --seeds 3 "
        "--out {results}/meissonic-emoji"
    ),
    "held-out/meissonic-emoji/report": (
        "{swiftmask} bench meissonic-emoji --prompts runs/emoji/prompts-held-out.jsonl --steps 4 16 "
        "--baselines --only vanilla-4 vanilla-16 --scorer reader=emoji-judge reader=emoji-reward "
        "--images 166 --seeds 2 --out {results}/held-out/meissonic-emoji"
    ),
    "features/meissonic-emoji/report": (
        "{swiftmask} bench meissonic-emoji --reference runs/emoji --steps 1 4 6 16 "
        "--budgets 16:6 --baselines reuse --only vanilla-1 vanilla-4 vanilla-6 vanilla-16 reuse-16:6 "
        "--scorer efficientnet-lite0 --images 1000 --seeds 1 --out {results}/features/meissonic-emoji"
    ),
    "meissonic-scenes/report": (
        "{swiftmask} bench meissonic-scenes --shortcut none --steps 2 3 4 5 6 8 12 16 24 --baselines "
        "--speed-rl meissonic-scenes-speed-rl --images 672 --seeds 3 --batch-size 96 --dtype bfloat16 "
        "--device cpu --out {results}/meissonic-scenes"
    ),
    "dimoo-scenes/report": (
        "{swiftmask} bench dimoo-scenes --shortcut auto --steps 4 6 8 12 16 24 32 64 "
        "--budgets 16:4 16:6 --baselines reuse extrapolation-1 ml-cache ml-cache-refreshed "
        "--images 672 --seeds 3 --batch-size 48 --dtype float32 --device cpu --out {results}/dimoo-scenes"
    ),
    "mar-scenes-sampler": (
        "{python} benchmarks/mar_straightforward.py mar-scenes --ar-steps 16 --steps 2 6 10 14 --batch 1 16 "
        "--dtype bfloat16 --repeats 5 --json {file}"
    ),
    "marval-ablations": (
        "{python} benchmarks/marval_ablations.py --teacher src/swiftmask/weights/mar-scenes --updates 300 "
        "--set training.batch_size=32 --images 240 --seeds 2 --json {file}"
    ),
    "speed-rl-ablations": (
        "{python} benchmarks/speed_rl_ablations.py --rounds 24 --set training.learning_rate=4e-4 "
        "prompts=benchmarks/failing_captions.txt training.precision=no training.warmup_steps=2 "
        "speed_rl.filter.active_after=16 --json {file}"
    ),
    "serve": "{python} benchmarks/serve.py --out {file}",
    "speed-rl-noise": (
        "{python} benchmarks/speed_rl_noise.py --rounds 24 --set training.precision=no --json {file}"
    ),
    "meissonic-1024-speed": (
        "{python} benchmarks/meissonic_speed.py --device cpu --precision bf16 --method lora --batch 1 "
        "--steps 1 --repeats 2 --matmul-sizes 2048 --out {file}"
    ),
    "dimoo-speed": _DIMOO + " --layers 4 --batch-size 1 --dtype bfloat16 --repeats 3",
    "dimoo-speed-2-layers-batch1": _DIMOO + " --layers 2 --batch-size 1 --dtype float32 --repeats 2",
    "dimoo-speed-2-layers-batch4": _DIMOO + " --layers 2 --batch-size 4 --dtype float32 --repeats 2",
    "dimoo-straightforward": (
        "{python} benchmarks/dimoo_straightforward.py --layers 1 4 --dtype bfloat16 --json {file}"
    ),
    "maskgit-512-speed-bfloat16": f"{_SPEED} --dtype bfloat16 --repeats 5 --out {{file}}",
    "maskgit-512-speed-float32": f"{_SPEED} --dtype float32 --repeats 3 --out {{file}}",
    "mar-b-sampler-batch1": f"{_SAMPLER} --batch 1 --dtype float32 bfloat16 --repeats 3 --json {{file}}",
    "mar-b-sampler-batch16": (
        f"{_SAMPLER} --batch 16 --dtype bfloat16 --repeats 2 --steps 16 48 --json {{file}}"
    ),
    "reports/maskgit-scenes": (
        "{swiftmask} bench maskgit-scenes --steps 4 8 16 --budgets 16:6 --unguided 4 6 8 12 16 24 "
        "16:4 16:6 --images 672 --seeds 3 --batch-size 48 --dtype float32 --device cpu --out {report}"
    ),
    "reports/meissonic-emoji": (
        "{swiftmask} bench meissonic-emoji --prompts runs/emoji/prompts-trained.jsonl --steps 1 4 16 "
        "--budgets 16:6 --baselines reuse --unguided 4 --scorer reader=emoji-judge reader=emoji-reward "
        "--images 200 --seeds 1 --dtype float32 --device cpu --out {report}"
    ),
    "reports/mar-scenes": (
        "{swiftmask} bench mar-scenes --steps 4 8 16 --budgets 16:4 16:6 --denoising-steps 25 "
        "--ddim-steps 10 8x5 --marval mar-scenes-marval mar-scenes-marval-rl --images 192 --seeds 2 "
        "--batch-size 48 --dtype float32 --device cpu --out {report}"
    ),
    "reports/meissonic-scenes": (
        "{swiftmask} bench meissonic-scenes --steps 4 6 8 12 16 24 --budgets 16:4 16:6 --images 192 "
        "--seeds 2 --batch-size 48 --dtype float32 --device cpu --out {report}"
    ),
    "reports/dimoo-scenes": (
        "{swiftmask} bench dimoo-scenes --steps 4 6 8 12 16 24 32 64 --budgets 16:4 16:6 "
        "--images 672 --seeds 3 --batch-size 48 --dtype float32 --device cpu --out {report}"
    ),
}
"""What writes `results/NAME.json`, or the page of `docs/reports/NAME`."""


def command(name: str) -> list[str]:
    """The words of a command, with this environment's swiftmask and python."""
    words = {
        "swiftmask": f"{shlex.quote(sys.executable)} -m swiftmask",
        "python": shlex.quote(sys.executable),
        "results": str(RESULTS),
        "file": str(RESULTS / f"{name}.json"),
        "report": str(REPORTS / name.removeprefix("reports/")),
    }
    return shlex.split(COMMANDS[name].format(**words))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    chosen = parser.parse_args()
    names = chosen.names or list(COMMANDS)
    if unknown := [name for name in names if name not in COMMANDS]:
        parser.error(f"no result is called {unknown[0]}: choose from {', '.join(COMMANDS)}")
    for place, name in enumerate(names):
        print(f"[{place + 1}/{len(names)}] {name}: {shlex.join(command(name))}", flush=True)
        if not chosen.list and subprocess.run(command(name), cwd=ROOT).returncode:
            left = " ".join(names[place:])
            sys.exit(f"{name} failed: mend it and go on with python benchmarks/run.py {left}")


if __name__ == "__main__":
    main()
