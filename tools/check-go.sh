#!/bin/sh
# Says whether the installed Go can build this project. Plain sh, as it also has to run where Go is missing or too old to read
# go.mod.
set -u
cd "$(dirname "$0")/.." || exit 1

needed=$(sed -n 's/^go \([0-9.]*\).*/\1/p' go.mod)
if command -v go >/dev/null 2>&1; then
    # Newer releases answer with the one that they would fetch for this go.mod; old ones cannot read it and answer elsewhere.
    found=$(go env GOVERSION 2>/dev/null)
    [ -n "$found" ] || found=$(cd / && go version 2>/dev/null | sed -n 's/^go version \(go[^ ]*\).*/\1/p')
    found=${found#go}
else
    found=
fi

new_enough() { # whether version $1 is at least $2; a pre-release counts as its release
    awk -v have="$1" -v want="$2" 'BEGIN {
        split(have, h, /[^0-9]+/); split(want, w, /[^0-9]+/)
        for (i = 1; i <= 3; i++) if (h[i] + 0 != w[i] + 0) exit h[i] + 0 < w[i] + 0
        exit 0
    }'
}

if [ -n "$found" ] && new_enough "$found" "$needed"; then
    exit 0
fi
{
    if [ -n "$found" ]; then
        echo "Millrace needs Go $needed or newer. Found: Go $found ($(command -v go))."
    else
        echo "Millrace needs Go $needed or newer. Found: none on PATH."
    fi
    echo "Get it from https://go.dev/dl/: unpack it to /usr/local and put /usr/local/go/bin first on PATH."
    [ ! -r /etc/debian_version ] || echo "Debian 12's own package golang-go is 1.19, which is too old."
} >&2
exit 1
