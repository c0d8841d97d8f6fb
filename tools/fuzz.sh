#!/bin/bash
# Runs each fuzz target for FUZZTIME (default 10s), or those whose name matches RUN.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

found=0
while IFS=: read -r file target; do
    [[ $target =~ ${RUN:-.} ]] || continue
    found=$((found + 1))
    printf '== %s in %s\n' "$target" "$(dirname "$file")"
    go test -run='^$' -fuzz="^$target\$" -fuzztime="${FUZZTIME:-10s}" "./$(dirname "$file")"
done < <(git ls-files --cached --others --exclude-standard -- '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/')
((found)) || { echo "no fuzz target matches ${RUN:-.}" >&2; exit 1; }
