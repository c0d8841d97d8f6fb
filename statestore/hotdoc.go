package statestore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"millrace"
)

// hotDocFormat is the first byte of what a hot copy says of its conversation
// besides version and messages. Then come the conversation's id behind its length,
// how many messages it has and how many of it have been erased (varints), and the
// state up to the end, in the spelling that PostgreSQL gives: a step whose request
// quotes it would else seem another one.
const hotDocFormat = 1

var (
	errHotDoc  = errors.New("not a document of this version")
	errForeign = errors.New("it is another conversation's")
)

func encodeHotDoc(c *millrace.Conversation) []byte {
	b := make([]byte, 0, 1+3*binary.MaxVarintLen64+len(c.ID)+len(c.State))
	b = append(b, hotDocFormat)
	b = append(binary.AppendUvarint(b, uint64(len(c.ID))), c.ID...)
	b = binary.AppendVarint(b, c.Length)
	b = binary.AppendVarint(b, c.Erased)
	return append(b, c.State...)
}

// hotDocHead is how many bytes of a document say whose it is. Scripts compare them.
func hotDocHead(c *millrace.Conversation) int {
	var length [binary.MaxVarintLen64]byte
	return 1 + binary.PutUvarint(length[:], uint64(len(c.ID))) + len(c.ID)
}

// decodeHotDoc returns the conversation of the given id at the given version, still
// without its messages. The version alone does not tell one conversation from
// another: most are young, and a turn would commit on the other's state.
func decodeHotDoc(id, version, doc string) (millrace.Conversation, error) {
	c := millrace.Conversation{ID: id}
	var err error
	if c.Version, err = strconv.ParseInt(version, 10, 64); err != nil {
		return millrace.Conversation{}, fmt.Errorf("version: %w", err)
	}
	if doc == "" || doc[0] != hotDocFormat {
		return millrace.Conversation{}, errHotDoc
	}
	doc = doc[1:]
	var owner string
	if !takeString(&doc, &owner) || !takeVarint(&doc, &c.Length) || !takeVarint(&doc, &c.Erased) || c.Version < 0 || c.Length < 0 || c.Erased < 0 {
		return millrace.Conversation{}, errHotDoc
	}
	if owner != id {
		return millrace.Conversation{}, errForeign
	}
	if doc != "" {
		c.State = json.RawMessage(doc)
	}
	return c, nil
}
