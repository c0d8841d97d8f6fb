package demo

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// DefaultConversations is how many conversations are made up by default.
const DefaultConversations = 200

// liveConversations is how many made-up conversations are under way at a time.
const liveConversations = 40

// Generate returns made-up conversations of 3 to 8 turns each. One seed always
// gives the same ones. 0 conversations means [DefaultConversations].
func Generate(conversations int, seed uint64) *Input {
	if conversations <= 0 {
		conversations = DefaultConversations
	}
	turns := interleave(conversations, seed)
	return &Input{name: "generated", total: len(turns), open: func() (source, error) {
		return &slice{turns: turns}, nil
	}}
}

type slice struct{ turns []Turn }

func (s *slice) next() (Turn, error) {
	if len(s.turns) == 0 {
		return Turn{}, io.EOF
	}
	t := s.turns[0]
	s.turns = s.turns[1:]
	return t, nil
}

func (s *slice) close() error { return nil }

// interleave mixes conversations as they would come in from many users at once.
func interleave(conversations int, seed uint64) []Turn {
	random := rand.New(rand.NewPCG(seed, 0x6d696c6c72616365)) //nolint:gosec // meant to be repeatable
	var all []Turn
	var live [][]Turn
	started := 0
	for {
		for len(live) < liveConversations && started < conversations {
			live = append(live, makeUp(random, started))
			started++
		}
		if len(live) == 0 {
			return all
		}
		i := random.IntN(len(live))
		all = append(all, live[i][0])
		if live[i] = live[i][1:]; len(live[i]) == 0 {
			live = append(live[:i], live[i+1:]...)
		}
	}
}

// topic is a kind of conversation: how it opens, goes on and ends. A word in
// braces stands for one of its fillings, the same one all through.
type topic struct {
	service string
	opens   []string
	goesOn  []string
	ends    []string
	fill    map[string][]string
}

var topics = []topic{
	{
		service: "support",
		opens: []string{
			"My {device} has stopped {doing} since the last update.",
			"I cannot get the {device} to work, it keeps {failing}.",
			"The {device} I bought {when} is {failing}, what should I do?",
		},
		goesOn: []string{
			"I have switched it off and on again, it is still {failing}.",
			"The light on the {device} blinks {color} now.",
			"Where do I find the serial number of the {device}?",
			"Does that also work when I have no {tool} at hand?",
			"It worked for an hour, then it began {failing} again.",
			"Can somebody call me {when}?",
		},
		ends: []string{"That did it, the {device} runs again.", "I will send the {device} in, then.", "Good, please close the ticket."},
		fill: map[string][]string{
			"device": {"router", "printer", "coffee machine", "thermostat", "headset", "door lock"},
			"doing":  {"connecting", "charging", "answering", "printing in colour"},
			"failing": {
				"restarting by itself", "showing error 42", "losing its settings", "making a grinding noise",
			},
			"color": {"red", "orange", "blue and green in turns"},
			"tool":  {"screwdriver", "second phone", "network cable"},
			"when":  {"yesterday", "last week", "on Monday", "this morning"},
		},
	},
	{
		service: "travel",
		opens: []string{
			"I would like to go to {town} {day} with {party}.",
			"What is the quickest way to {town} {day}?",
			"We need {beds} in {town}, arriving {day}.",
		},
		goesOn: []string{
			"Is there anything that leaves later {day}?",
			"And what would it cost for {party}?",
			"We would rather have {beds}.",
			"Can we take {luggage} along?",
			"How far is that from the {place}?",
			"Could you keep that for us until tomorrow?",
		},
		ends: []string{"Fine, book it for {party}.", "Then we will stay at home this time.", "Send me the tickets to {town}, please."},
		fill: map[string][]string{
			"town":    {"Lisbon", "Tallinn", "Kyoto", "Valparaiso", "Ghent", "Bergen"},
			"day":     {"on Friday", "next week", "on the 3rd", "over the holidays"},
			"party":   {"two adults", "a family of five", "my mother", "eleven colleagues"},
			"beds":    {"two single rooms", "one large room", "a flat with a kitchen"},
			"luggage": {"a bicycle", "a cello", "a small dog", "three suitcases"},
			"place":   {"harbour", "old market", "main station", "conference hall"},
		},
	},
	{
		service: "coding",
		opens: []string{
			"My {language} program {symptom} as soon as it reads {data}.",
			"How do I parse {data} in {language} without loading it all?",
			"Please review the function that sorts {data}.",
		},
		goesOn: []string{
			"The test passes alone but {symptom} when all run together.",
			"Would {technique} be faster here?",
			"It is {language}, and the file has {size} lines.",
			"What happens if {data} is empty?",
			"Now it compiles, but it {symptom}.",
			"Can you write that with {technique} instead?",
		},
		ends: []string{"That passes all tests, merged.", "I will try {technique} tomorrow.", "Thanks, the {language} version is good enough."},
		fill: map[string][]string{
			"language":  {"Go", "Python", "Rust", "Java", "SQL"},
			"symptom":   {"runs out of memory", "hangs", "prints the wrong sum", "dies without a word"},
			"data":      {"a CSV of orders", "the access log", "nested JSON", "a list of timestamps"},
			"technique": {"a heap", "a streaming parser", "binary search", "one pass and a map"},
			"size":      {"12,000", "three million", "about nine hundred"},
		},
	},
}

// makeUp returns the turns of one conversation.
func makeUp(random *rand.Rand, number int) []Turn {
	t := topics[random.IntN(len(topics))]
	pick := func(from []string) string { return from[random.IntN(len(from))] }
	// In the order of the text, not of a map, so that a seed decides everything.
	filled := make(map[string]string)
	say := func(text string) string {
		for {
			before, rest, found := strings.Cut(text, "{")
			word, after, closed := strings.Cut(rest, "}")
			if !found || !closed {
				return text
			}
			if filled[word] == "" {
				filled[word] = pick(t.fill[word])
			}
			text = before + filled[word] + after
		}
	}
	n := 3 + random.IntN(6)
	turns := make([]Turn, n)
	order := random.Perm(len(t.goesOn))
	for i := range turns {
		text := pick(t.ends)
		switch {
		case i == 0:
			text = pick(t.opens)
		case i < n-1:
			text = t.goesOn[order[(i-1)%len(order)]]
		}
		turns[i] = Turn{
			Conversation: fmt.Sprintf("%s-%04d", t.service, number),
			Type:         defaultType,
			Service:      t.service,
			Text:         say(text),
		}
	}
	return turns
}
