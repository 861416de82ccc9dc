//go:build tools

// Package tools pins h2spec, which tests HTTP/2. `.ci/h2spec` builds it.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
