// Command client asks through go-openai and prints what it saw as one JSON object:
//
//	client <scenario> <base URL> [name=value ...]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"
)

type object = map[string]any

var requests = []object{}

type counting struct{}

func (counting) RoundTrip(request *http.Request) (*http.Response, error) {
	note := object{"method": request.Method, "path": request.URL.Path, "status": nil}
	requests = append(requests, note)
	response, err := http.DefaultTransport.RoundTrip(request)
	if err == nil {
		note["status"] = response.StatusCode
		note["run"] = response.Header.Get("X-Run-Id")
	}
	return response, err
}

func describe(err error) object {
	found := object{"kind": fmt.Sprintf("%T", err), "status": nil, "message": err.Error()}
	var api *openai.APIError
	if errors.As(err, &api) {
		found["kind"], found["status"], found["code"], found["type"] = "APIError", api.HTTPStatusCode, api.Code, api.Type
		found["param"] = api.Param
	} else if errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) {
		found["kind"] = "DeadlineExceeded"
	}
	return found
}

func usageOf(usage *openai.Usage) object {
	return object{
		"input": usage.PromptTokens, "output": usage.CompletionTokens, "total": usage.TotalTokens,
		"cached": usage.PromptTokensDetails.CachedTokens, "reasoning": usage.CompletionTokensDetails.ReasoningTokens,
	}
}

func user(text string) openai.ChatCompletionMessage {
	return openai.ChatCompletionMessage{Role: openai.ChatMessageRoleUser, Content: text}
}

func assistant(text string) openai.ChatCompletionMessage {
	return openai.ChatCompletionMessage{Role: openai.ChatMessageRoleAssistant, Content: text}
}

func answer(ctx context.Context, client *openai.Client, request openai.ChatCompletionRequest, seen object) error {
	found, err := client.CreateChatCompletion(ctx, request)
	if err != nil {
		return err
	}
	choice := found.Choices[0]
	seen["text"], seen["role"], seen["finish"] = choice.Message.Content, choice.Message.Role, choice.FinishReason
	seen["usage"], seen["id"], seen["model"] = usageOf(&found.Usage), found.ID, found.Model
	return nil
}

func stream(ctx context.Context, client *openai.Client, request openai.ChatCompletionRequest, seen object, once bool) error {
	request.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
	begun := time.Now()
	following, err := client.CreateChatCompletionStream(ctx, request)
	if err != nil {
		return err
	}
	defer following.Close()
	text, chunks := "", 0
	for {
		chunk, err := following.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if chunk.Usage != nil {
			seen["usage"] = usageOf(chunk.Usage)
		}
		for _, choice := range chunk.Choices {
			if choice.FinishReason != "" {
				seen["finish"] = choice.FinishReason
			}
			if choice.Delta.Content == "" {
				continue
			}
			seen["last_s"] = time.Since(begun).Seconds()
			if chunks == 0 {
				seen["first_s"] = seen["last_s"]
			}
			text, chunks = text+choice.Delta.Content, chunks+1
			seen["text"], seen["chunks"] = text, chunks
			if once {
				return nil
			}
		}
	}
}

func models(ctx context.Context, client *openai.Client, seen object) error {
	list, err := client.ListModels(ctx)
	if err != nil {
		return err
	}
	seen["models"] = list.Models
	one, err := client.GetModel(ctx, "claude")
	if err != nil {
		return err
	}
	seen["one"] = one
	if _, err = client.GetModel(ctx, "no/such"); err != nil {
		seen["missing"] = describe(err)
	}
	return nil
}

func run(scenario, base string, options map[string]string, seen object) error {
	config := openai.DefaultConfig("not-needed")
	config.BaseURL = base + "/openai/v1"
	config.HTTPClient = &http.Client{Transport: counting{}}
	client := openai.NewClientWithConfig(config)
	ctx := context.Background()
	if words := options["timeout"]; words != "" {
		seconds, err := strconv.ParseFloat(words, 64)
		if err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
		defer cancel()
		ctx = limited
	}
	request := openai.ChatCompletionRequest{Model: "claude", Messages: []openai.ChatCompletionMessage{user(options["prompt"])}}
	if name := options["model"]; name != "" {
		request.Model = name
	}
	switch scenario {
	case "models":
		return models(ctx, client, seen)
	case "history":
		request.Messages = []openai.ChatCompletionMessage{
			{Role: openai.ChatMessageRoleSystem, Content: "You are a TEAPOT."},
			user("My name is Ada."), assistant("Hello Ada."),
			user("And I live in Kraków."), assistant("A fine town."), user(options["prompt"]),
		}
		return answer(ctx, client, request, seen)
	case "refused":
		clock := openai.FunctionDefinition{Name: "clock", Parameters: object{"type": "object", "properties": object{}}}
		request.Tools = []openai.Tool{{Type: openai.ToolTypeFunction, Function: &clock}}
		request.ToolChoice = "required"
		return answer(ctx, client, request, seen)
	case "stream":
		return stream(ctx, client, request, seen, false)
	case "hangup":
		return stream(ctx, client, request, seen, true)
	default:
		return answer(ctx, client, request, seen)
	}
}

func main() {
	options := map[string]string{}
	for _, word := range os.Args[3:] {
		name, value, _ := strings.Cut(word, "=")
		options[name] = value
	}
	seen := object{}
	begun := time.Now()
	if err := run(os.Args[1], os.Args[2], options, seen); err != nil {
		seen["error"] = describe(err)
	}
	seen["took_s"] = time.Since(begun).Seconds()
	seen["requests"] = requests
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		os.Exit(1)
	}
}
