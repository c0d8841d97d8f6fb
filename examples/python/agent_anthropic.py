"""The agent of agent.py on Anthropic's SDK.

    export MILLRACE_LLM_ANTHROPIC_API_KEY=…
    MILLRACE_HANDLER=http MILLRACE_HANDLER_URL=http://127.0.0.1:9000 millrace up
    LLM_MODEL=… python agent_anthropic.py
"""

# snippet:agent
import os

import anthropic

from turns import Refused, serve

# This SDK adds /v1 by itself.
llm = anthropic.Anthropic(
    base_url=os.environ.get("LLM_PROXY_URL", "http://127.0.0.1:8090"), api_key="the-proxy-has-it", max_retries=0
)
model = os.environ.get("LLM_MODEL", "simulated-model")


def answer(turn, llm_headers):
    try:
        question = {"role": "user", "content": turn["task"]["payload"]["text"]}
    except (KeyError, TypeError):
        raise Refused(422, 'want a payload such as {"text": "hello"}') from None
    history = [{"role": m["role"], "content": m["content"]} for m in turn["history"]]
    try:
        reply = llm.messages.create(
            model=model, max_tokens=1024, messages=history + [question], extra_headers=llm_headers
        )
    except anthropic.APIStatusError as e:
        raise Refused(e.status_code, e.message, e.response.headers.get("retry-after")) from e
    except anthropic.APIConnectionError as e:
        raise Refused(503, f"LLM proxy: {e}") from e
    text = "".join(block.text for block in reply.content if block.type == "text")
    if not turn.get("conversation"):
        return {"result": {"text": text}}
    return {"messages": [question, {"role": "assistant", "content": text}], "result": {"text": text}}


if __name__ == "__main__":
    serve(answer, port=int(os.environ.get("PORT", "9000")))
# snippet:end
