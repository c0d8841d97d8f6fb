"""An agent on OpenAI's SDK whose LLM calls go through the worker's proxy.

    MILLRACE_HANDLER=http MILLRACE_HANDLER_URL=http://127.0.0.1:9000 millrace up
    python agent.py
"""

# snippet:agent
import os

import openai

from turns import Refused, serve

# Millrace's proxy knows the account's key, keeps its limits, and answers a call that an earlier run of the turn has
# paid for from the journal. Retries are the worker's.
llm = openai.OpenAI(
    base_url=os.environ.get("LLM_PROXY_URL", "http://127.0.0.1:8090/v1"), api_key="the-proxy-has-it", max_retries=0
)
model = os.environ.get("LLM_MODEL", "simulated-model")


def answer(turn, llm_headers):
    try:
        question = {"role": "user", "content": turn["task"]["payload"]["text"]}
    except (KeyError, TypeError):
        raise Refused(422, 'want a payload such as {"text": "hello"}') from None
    history = [{"role": m["role"], "content": m["content"]} for m in turn["history"]]
    try:
        completion = llm.chat.completions.create(
            model=model, messages=history + [question], extra_headers=llm_headers
        )
    except openai.APIStatusError as e:
        raise Refused(e.status_code, e.message, e.response.headers.get("retry-after")) from e
    except openai.APIConnectionError as e:
        raise Refused(503, f"LLM proxy: {e}") from e
    text = completion.choices[0].message.content
    if not turn.get("conversation"):
        return {"result": {"text": text}}
    return {
        "messages": [question, {"role": "assistant", "content": text}],  # appended to the history
        "state": {"turns": turn.get("state", {"turns": 0})["turns"] + 1},  # any JSON of your own
        "result": {"text": text},  # what the task's sender gets
    }


if __name__ == "__main__":
    serve(answer, port=int(os.environ.get("PORT", "9000")))
# snippet:end
