package ingest

import _ "embed"

// docsPage renders /openapi.json in the browser without any other resource.
//
//go:embed docs.html
var docsPage []byte

// docsPolicy lets the page load nothing but the document beside it.
const docsPolicy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
