package sim

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	anthropicsdk "github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	openaisdk "github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
)

func serve(t *testing.T, cfg Config) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(newSim(t, cfg).Handler())
	t.Cleanup(server.Close)
	return server
}

func openAIClient(server *httptest.Server) openaisdk.Client {
	return openaisdk.NewClient(openaioption.WithBaseURL(server.URL+"/v1"), openaioption.WithAPIKey("key"),
		openaioption.WithHTTPClient(server.Client()), openaioption.WithMaxRetries(0))
}

func anthropicClient(server *httptest.Server) anthropicsdk.Client {
	return anthropicsdk.NewClient(anthropicoption.WithBaseURL(server.URL), anthropicoption.WithAPIKey("key"),
		anthropicoption.WithHTTPClient(server.Client()), anthropicoption.WithMaxRetries(0))
}

var openAIParams = openaisdk.ChatCompletionNewParams{
	Model:    "m",
	Messages: []openaisdk.ChatCompletionMessageParamUnion{openaisdk.UserMessage("how are you?")},
}

var anthropicParams = anthropicsdk.MessageNewParams{
	Model: "m", MaxTokens: 200,
	System:   []anthropicsdk.TextBlockParam{{Text: "be kind"}},
	Messages: []anthropicsdk.MessageParam{anthropicsdk.NewUserMessage(anthropicsdk.NewTextBlock("how are you?"))},
}

func TestOfficialOpenAIClient(t *testing.T) {
	client := openAIClient(serve(t, Config{}))
	answer, err := client.Chat.Completions.New(t.Context(), openAIParams)
	if err != nil {
		t.Fatal(err)
	}
	if text := answer.Choices[0].Message.Content; !strings.HasPrefix(text, Echo("how are you?")) || answer.Choices[0].FinishReason != "stop" {
		t.Errorf("answer %q, finish %q", text, answer.Choices[0].FinishReason)
	}
	if u := answer.Usage; u.PromptTokens == 0 || u.CompletionTokens == 0 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("usage %+v", u)
	}

	params := openAIParams
	params.StreamOptions.IncludeUsage = openaisdk.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	var acc openaisdk.ChatCompletionAccumulator
	chunks := 0
	for stream.Next() {
		chunks++
		acc.AddChunk(stream.Current())
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if text := acc.Choices[0].Message.Content; chunks < 4 || !strings.HasPrefix(text, Echo("how are you?")) || acc.Usage.CompletionTokens == 0 {
		t.Errorf("%d chunks, answer %q, usage %+v", chunks, text, acc.Usage)
	}
}

func TestOfficialAnthropicClient(t *testing.T) {
	client := anthropicClient(serve(t, Config{}))
	answer, err := client.Messages.New(t.Context(), anthropicParams)
	if err != nil {
		t.Fatal(err)
	}
	if text := answer.Content[0].Text; !strings.HasPrefix(text, Echo("how are you?")) || answer.Usage.OutputTokens == 0 {
		t.Errorf("answer %q, usage %+v", text, answer.Usage)
	}
	stream := client.Messages.NewStreaming(t.Context(), anthropicParams)
	var acc anthropicsdk.Message
	for stream.Next() {
		if err := acc.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(acc.Content[0].Text, Echo("how are you?")) || acc.StopReason != "end_turn" || acc.Usage.OutputTokens < 2 {
		t.Errorf("accumulated %+v", acc)
	}
}

func TestOfficialClientsUnderstandRefusals(t *testing.T) {
	server := serve(t, Config{Limits: Limits{RequestsPerMinute: 1}})
	openai, anthropic := openAIClient(server), anthropicClient(server)
	if _, err := openai.Chat.Completions.New(t.Context(), openAIParams); err != nil {
		t.Fatal(err)
	}
	_, err := openai.Chat.Completions.New(t.Context(), openAIParams)
	var openAIError *openaisdk.Error
	if !errors.As(err, &openAIError) || openAIError.StatusCode != 429 || openAIError.Code != "rate_limit_exceeded" || openAIError.Response.Header.Get("Retry-After") == "" {
		t.Errorf("OpenAI: %v", err)
	}
	_, err = anthropic.Messages.New(t.Context(), anthropicParams)
	var anthropicError *anthropicsdk.Error
	if !errors.As(err, &anthropicError) || anthropicError.StatusCode != 429 || anthropicError.Type() != "rate_limit_error" || anthropicError.Response.Header.Get("Retry-After") == "" {
		t.Errorf("Anthropic: %v", err)
	}
}
