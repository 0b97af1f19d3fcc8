#!/usr/bin/env bash
# SkyRL's Tinker server on this machine's processor, for `backend: cluster` and the tests marked `cluster`.
#   scripts/skyrl_server.sh PYTHON MODEL [PORT] [BACKEND_CONFIG]
# PYTHON has skyrl installed (Python 3.12 or newer):
#   python3.12 -m venv ENV && ENV/bin/pip install 'skyrl[tinker,jax]==0.4.0' aiohttp
# MODEL is a folder that transformers can load; BACKEND_CONFIG is JSON for SkyRL's JAX backend.
# Stop it with Ctrl-C or SIGTERM; what it stored goes with it.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
# Batches of one size: a batch of another is compiled anew, which takes half a minute.
default='{"max_lora_adapters": 8, "max_lora_rank": 32, "sample_max_num_sequences": 16, "train_micro_batch_size": 8}'
python=$1 model=$(cd "$2" && pwd) port=${3:-8000} config=${4:-$default}
"$python" -c 'import aiohttp, skyrl.tinker.api' || { echo "$python lacks skyrl or aiohttp (see the head of $0)" >&2; exit 1; }

work=$(mktemp -d)
server=
cleanup() {
  trap '' TERM INT
  [ -z "$server" ] || { kill "$server" 2> /dev/null && wait "$server" 2> /dev/null; } || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 0' TERM INT
# SkyRL starts its engine by the `uv run` it was started with itself; this stands in for that in a finished environment.
mkdir "$work/bin"
cat > "$work/bin/uv" <<'UV'
#!/usr/bin/env bash
while [ $# -gt 0 ] && [ "$1" != -m ]; do shift; done
"$SKYRL_PYTHON" "$@" &
child=$!
trap 'kill "$child" 2> /dev/null' TERM INT
wait "$child" || wait "$child"
UV
chmod +x "$work/bin/uv"
export SKYRL_PYTHON=$python PATH=$work/bin:$PATH JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1
uv run -m skyrl.tinker.api --base-model "$model" --backend jax --backend-config "$config" --host 127.0.0.1 \
  --port "$port" --checkpoints-base "$work/checkpoints" --database-url "sqlite:///$work/tinker.db" &
server=$!
wait "$server"
