// Package tap writes results in the Test Anything Protocol. It has the interface of
// github.com/mndrix/tap-go, as far as the validation programs of runtime-tools use it: Debian packages
// them, but not that library.
package tap

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// T counts and writes results. Writer is standard output unless set.
type T struct {
	Writer io.Writer

	*state
	todo bool
}

// state is one for a T and what Todo made of it: the numbers go on.
type state struct {
	mutex sync.Mutex
	next  int
	ended bool
}

// New makes a T that has written nothing yet.
func New() *T {
	return &T{state: &state{next: 1}}
}

// Todo is the same T, whose results are marked as not done yet: a bad one is no failure.
func (t *T) Todo() *T {
	return &T{Writer: t.Writer, state: t.state, todo: true}
}

func (t *T) printf(format string, args ...interface{}) {
	writer := t.Writer
	if writer == nil {
		writer = os.Stdout
	}
	fmt.Fprintf(writer, format, args...)
}

// Header writes the version and, where count is over 0, the plan.
func (t *T) Header(count int) {
	t.printf("TAP version 13\n")
	if count > 0 {
		t.ended = true
		t.printf("1..%d\n", count)
	}
}

// AutoPlan writes the plan at the end: as many as there were.
func (t *T) AutoPlan() {
	if !t.ended {
		t.printf("1..%d\n", t.next-1)
	}
}

func (t *T) result(ok bool, description, directive string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	word := "ok"
	if !ok {
		word = "not ok"
	}
	if t.todo {
		directive = " # TODO"
	}
	line := strings.ReplaceAll(description, "\n", " ")
	t.printf("%s %d - %s%s\n", word, t.next, line, directive)
	t.next++
}

// Ok writes a result.
func (t *T) Ok(test bool, description string) { t.result(test, description, "") }

// Pass writes a good result.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail writes a bad result.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip writes count results as skipped.
func (t *T) Skip(count int, description string) {
	for ; count > 0; count-- {
		t.result(true, "", " # SKIP "+description)
	}
}

// Diagnostic writes a comment.
func (t *T) Diagnostic(message string) {
	t.printf("# %s\n", strings.ReplaceAll(message, "\n", "\n# "))
}

// Diagnosticf writes a comment from a format.
func (t *T) Diagnosticf(format string, args ...interface{}) {
	t.Diagnostic(fmt.Sprintf(format, args...))
}

// YAML writes a value under the last result; JSON is YAML.
func (t *T) YAML(message interface{}) error {
	text, err := json.MarshalIndent(message, "  ", "  ")
	if err != nil {
		return err
	}
	t.printf("  ---\n  %s\n  ...\n", text)
	return nil
}
