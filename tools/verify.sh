#!/bin/bash
# Fails when the dependencies are not tidy, a file is not formatted, or generating would change a file. Leaves what it generated
# in place, so that it can be committed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=0
complain() {
    printf 'verify: %s\n' "$*" >&2
    failed=1
}

while read -r mod; do
    (cd "$(dirname "$mod")" && go mod tidy -diff) || complain "$mod is not tidy: run go mod tidy in its folder"
done < <(git ls-files --cached --others --exclude-standard -- go.mod '*/go.mod')

mapfile -t sources < <(git ls-files --cached --others --exclude-standard -- '*.go' | while read -r f; do [[ ! -f $f ]] || echo "$f"; done)
unformatted=$(go tool -modfile=tools/go.mod gofumpt -l "${sources[@]}")
[[ -z $unformatted ]] || complain "not formatted (run make fmt): ${unformatted//$'\n'/ }"

# The state of every file that git knows or would take, before and after.
state() { git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [[ ! -f $f ]] || sha256sum "$f"; done; }
before=$(state)
make --no-print-directory generate
if ! changed=$(diff <(echo "$before") <(state)); then
    complain "generated files were out of date, and are not any more: $(sed -n 's/^[<>] [0-9a-f]*  //p' <<<"$changed" | sort -u | paste -sd' ')"
fi
exit "$failed"
