#!/usr/bin/env bash
# Everything that needs an accelerator, on a bare machine with torch and transformers, in 9 minutes: the tests marked gpu,
# the benchmark beside TRL + PEFT, and an SFT, a DPO and a GRPO job through the server.
#
#   benchmarks/gpu.sh [--device cuda|cpu] [--wheels DIR] [--out DIR] [--minutes 9]
#
# --device cpu rehearses all of it with a tiny model. --wheels DIR holds what the machine lacks, if it has no package
# index: fill it with  pip download -d DIR '.[all,bench]' pytest pytest-timeout bitsandbytes setuptools
# Writes DIR/gpu.json and DIR/gpu.md. Exit code 0: every part ended well; a part that found no time left says so.
set -uo pipefail
cd "$(dirname "$0")/.."
device=cuda wheels="" out=${OUT:-build/gpu} minutes=9
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device=$2 ;;
    --wheels) wheels=$2 ;;
    --out) out=$2 ;;
    --minutes) minutes=$2 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift 2 || exit 2
done
case "$device" in cuda | cpu) ;; *) echo "--device is cuda or cpu, got $device" >&2; exit 2 ;; esac
python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
deadline=$((SECONDS + minutes * 60))

lacking() {
  "$python" - <<'PY'
import importlib.util as found

wanted = "torch transformers tinker tinker_cookbook fastapi uvicorn datasets peft trl mcp rensa pytest pytest_timeout"
print(*(name for name in wanted.split() if found.find_spec(name) is None))
PY
}

# What torch is here stays: a download could bring one that does not fit the driver.
if [ -n "$(lacking)" ]; then
  echo "lacking here: $(lacking)"
  "$python" -m pip install -q ${wheels:+--no-index --find-links "$wheels"} -e '.[all,bench]' pytest pytest-timeout ||
    { echo "they cannot be installed: carry them with --wheels (see the top of this file)" >&2; exit 3; }
fi
"$python" - "$device" <<'PY' || exit 3
import sys

import torch

if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device: see nvidia-smi, and that the driver is new enough for it")
print("torch", torch.__version__, "on", torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "the CPU")
PY

# part NAME SECONDS COMMAND...: run it in the time that is left, at most SECONDS, and keep what it said.
parts="$out/parts.jsonl"
rm -f "$out"/bench-*.json "$out"/*.log  # of an earlier run
: >"$parts"
failed=0
part() {
  local name=$1 most=$2 left=$((deadline - SECONDS)) began=$SECONDS code
  shift 2
  if [ "$left" -lt 20 ]; then
    echo "$name: no time left"
    echo "{\"part\": \"$name\", \"exit\": null, \"seconds\": 0}" >>"$parts"
    failed=1
    return
  fi
  echo "== $name"
  timeout -k 10 $((left < most ? left : most)) "$@" >"$out/$name.log" 2>&1
  code=$?
  [ "$code" = 0 ] || failed=1
  tail -n 3 "$out/$name.log"
  echo "{\"part\": \"$name\", \"exit\": $code, \"seconds\": $((SECONDS - began))}" >>"$parts"
}

shapes="0.6b 1.7b" rounds=3 steps=6
if [ "$device" = cpu ]; then
  shapes=tiny rounds=1 steps=2
  export CUDA_VISIBLE_DEVICES=""
fi
export ML_RESEARCHER_TEST_DEVICE=$device ML_RESEARCHER_HOME=$out/state
part tests 240 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/engine
for shape in $shapes; do
  part "bench-$shape" 200 "$python" -m benchmarks --device "$device" --shape "$shape" --rounds $rounds --steps $steps \
    --works sft,ragged,dpo,grpo,sample --json "$out/bench-$shape.json"
done
part jobs 300 "$python" -m sota_ml_researcher demo --json
"$python" -m sota_ml_researcher engine stop --yes >/dev/null 2>&1

"$python" - "$out" "$device" <<'PY'
import datetime
import json
import pathlib
import sys

out, device = pathlib.Path(sys.argv[1]), sys.argv[2]
parts = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
figures = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("bench-*.json"))}
day = datetime.date.today().isoformat()
lines = ["| part | seconds | ended |", "|---|---|---|"]
for part in parts:
    ended = "no time left" if part["exit"] is None else "well" if part["exit"] == 0 else f"with {part['exit']}"
    lines.append(f"| {part['part']} | {part['seconds']} | {ended} |")
for name in figures:
    log = (out / f"{name}.log").read_text()
    lines += ["", f"## {name}", "", log[log.index("Command: ") :].rstrip()]
(out / "gpu.md").write_text("\n".join([f"Device {device}, {day}.", "", *lines, ""]))
(out / "gpu.json").write_text(json.dumps({"device": device, "day": day, "parts": parts, "figures": figures}, indent=2))
print((out / "gpu.md").read_text())
PY
exit $failed
