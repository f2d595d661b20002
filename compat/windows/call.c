// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"
#include "text.h"

HRESULT refuse(HRESULT code, const char *why, PWSTR *error)
{
	char text[1200], *to = text;

	to += sprintf(to, "{\"Success\":false,\"Error\":\"");
	for (; *why && to < text + 1000; why++) {
		if (*why == '"' || *why == '\\')
			*to++ = '\\';
		*to++ = (unsigned char)*why < 0x20 ? ' ' : *why;
	}
	to += sprintf(to, "\",\"ErrorCode\":%u}", (unsigned int)code);
	if (error)
		*error = utf16_from_utf8(text, (size_t)(to - text), task_alloc);
	return code;
}

/* The HRESULT of an error record; E_FAIL when it has none. */
static HRESULT code_of(const struct answer *answer)
{
	struct slice record = { answer->body, answer->size }, value;
	uint32_t code;

	if (json_member(record, "ErrorCode", &value) || json_u32(value, &code) || !code)
		return HR_FAIL;
	return RESULT(code);
}

static HRESULT deliver(const struct answer *answer, PWSTR *result, PWSTR *error, char *id)
{
	struct slice object = { answer->body, answer->size }, value;

	if (!answer->status)
		return refuse(HR_NO_SERVER, answer->body ? answer->body : "out of memory", error);
	if (answer->status >= 400) {
		if (error)
			*error = utf16_from_utf8(answer->body, answer->size, task_alloc);
		return code_of(answer);
	}
	if (id && (json_member(object, "ID", &value) || guid_take(value, id)))
		return refuse(HR_FAIL, "the daemon answered without an ID", error);
	if (result && answer->size) {
		*result = utf16_from_utf8(answer->body, answer->size, task_alloc);
		if (!*result)
			return refuse(HR_OUTOFMEMORY, "no memory for the answer", error);
	}
	return S_OK;
}

HRESULT call(const char *method, const char *path, PCWSTR text, PWSTR *result, PWSTR *error, char *id)
{
	struct answer answer;
	char *body = NULL;
	HRESULT code;

	if (result)
		*result = NULL;
	if (error)
		*error = NULL;
	if (text && text[0]) {
		body = utf8_from_utf16(text);
		if (!body)
			return refuse(HR_INVALIDARG, "the text is not UTF-16", error);
	}
	http_call(method, path, body, &answer);
	code = deliver(&answer, result, error, id);
	answer_free(&answer);
	free(body);
	return code;
}
