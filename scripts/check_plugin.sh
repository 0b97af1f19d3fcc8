#!/usr/bin/env bash
# Validate the plugin with the real Claude Code, then install it from this folder and connect to its server.
# Needs npm; says so and succeeds without it. Offline after the one npm install; no login, nothing outside a temp folder.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
claude_version=2.1.197

if ! command -v npm > /dev/null; then
  echo "check_plugin: npm is not installed, so 'claude plugin validate' was NOT run"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --prefix "$work" "@anthropic-ai/claude-code@$claude_version" > "$work/npm.log" 2>&1 || {
  echo "check_plugin: npm cannot install Claude Code, so 'claude plugin validate' was NOT run:"
  tail -3 "$work/npm.log"
  exit 0
}
claude=$work/node_modules/.bin/claude
export HOME=$work/home CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
mkdir -p "$HOME"

# --strict: a warning fails too. The folder's marketplace, then the plugin's own manifest and parts.
"$claude" plugin validate --strict "$root"
"$claude" plugin validate --strict "$root/.claude-plugin/plugin.json"

# As a user would: from a clone, by two commands. The server is that of this folder's environment if there is one, else
# the one that says which command installs it; either way it has to answer.
mkdir -p "$work/clone"
git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C "$work/clone"
[ ! -x "$root/.venv/bin/python" ] || export ML_RESEARCHER_PYTHON=$root/.venv/bin/python
"$claude" plugin marketplace add "$work/clone"
"$claude" plugin install ml-researcher@ml-researcher
parts=$("$claude" plugin details ml-researcher)
for name in plan_experiment run_sft run_dpo run_grpo run_eval analyze_run validate_capacity researcher training-data debug-run; do
  grep -q "\b$name\b" <<< "$parts" || { echo "check_plugin: $name is not among the installed parts"; exit 1; }
done
export ML_RESEARCHER_HOME=$work/state
servers=$(cd "$work" && "$claude" mcp list)
echo "$servers"
grep -q "ml-researcher.*Connected" <<< "$servers" || { echo "check_plugin: the server did not answer"; exit 1; }
echo "check_plugin: validated without a warning, installed, connected"
